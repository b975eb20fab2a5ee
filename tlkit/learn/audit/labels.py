"""Labels that are likely wrong: confident learning.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021, section 3.1: an
image counts as of class j if its left-out probability of j reaches the mean of that probability over the images
labelled j; those that count as another class than their label's are the suspects, unless their label is the likeliest.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from tlkit.learn.advise.probes import front

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels = NDArray[np.int64]

FOLDS = 5
INVERSE_STRENGTH = 10.0  # what suits most features at norm 1; see the heads of the standard plugin


def left_out_probabilities(
    features: NDArray[np.float32], labels: Labels, classes: int, seed: int
) -> NDArray[np.float64]:
    """The probabilities `(N, classes)` of each image by logistic regression on the others, in five parts."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    rows = front(features).astype(np.float32)
    rows -= rows.mean(axis=0)
    scale = float(np.sqrt((rows**2).sum(axis=1).mean())) or 1.0
    shares = np.zeros((len(labels), classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        parts = StratifiedKFold(min(FOLDS, len(labels)), shuffle=True, random_state=seed).split(rows, labels)
        for fitted, held in parts:
            model = LogisticRegression(C=INVERSE_STRENGTH * scale**2 * 10, tol=1e-3, max_iter=200)
            model.fit(rows[fitted] / scale, labels[fitted])
            shares[np.ix_(held, model.classes_)] = model.predict_proba(rows[held] / scale)
    return shares


def suspects(shares: NDArray[np.float64], labels: Labels) -> list[tuple[int, int]]:
    """Index and likelier class of each image whose label is likely wrong, the likeliest first."""
    classes = shares.shape[1]
    index = np.arange(len(labels))
    present = np.bincount(labels, minlength=classes)
    own = shares[index, labels]
    thresholds = np.array([own[labels == label].mean() if present[label] else np.inf for label in range(classes)])
    reached = np.where(shares >= thresholds - 1e-12, shares, -1.0)
    counted = reached.argmax(axis=1)
    doubtful = (reached.max(axis=1) >= 0.0) & (counted != labels) & (shares.argmax(axis=1) != labels)
    margin = own - shares[index, counted]
    chosen = np.flatnonzero(doubtful)
    return [(int(i), int(counted[i])) for i in chosen[np.argsort(margin[chosen], kind="stable")]]
