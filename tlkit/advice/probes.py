"""Accuracy that can be expected of features, by leaving every image out once.

Two probes, both exact and without a loop over folds: ridge regression to the classes, whose left-out predictions
follow from one decomposition (Allen's PRESS; Golub, Heath and Wahba 1979), and the nearest class mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tlkit.advice.scores import one_hot
from tlkit.util.statistics import log_loss, power_normalize, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float64]
    Labels = NDArray[np.int64]

STRENGTHS = tuple(10.0**step for step in range(-6, 2))  # of the penalty, as shares of the features' total variance
SHARPNESS = tuple(2.0 ** (step / 2) for step in range(-4, 17))  # of the softmax over what ridge regression predicts


@dataclass(frozen=True, slots=True)
class Probe:
    """How many left-out images were called right, and which `(N,)`; and how likely it found their classes.

    `log_loss` is the mean over them, in nats, at the temperature that suits them best; None where there is no such
    thing as likely.
    """

    right: NDArray[np.bool_]
    called: Labels
    log_loss: float | None = None

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (Wilson 1927)."""
        return wilson(int(self.right.sum()), len(self.right))


def ridge(features: NDArray[np.floating], labels: Labels, classes: int) -> Probe:
    """The linear probe: least squares to the classes, the penalty chosen by the left-out squared error.

    The class an image is called is the one with the greatest value predicted by a fit to all others.
    """
    rows = power_normalize(features)
    rows -= rows.mean(axis=0)
    targets = one_hot(labels, classes)
    targets -= targets.mean(axis=0)
    values, left = _left(rows)
    within = left.T @ targets
    squared = left**2
    total = float(values.sum()) or 1.0
    best, predicted = np.inf, np.zeros_like(targets)
    for strength in STRENGTHS:
        shrink = values / (values + strength * total)
        own = squared @ shrink + 1.0 / len(rows)  # how much of its prediction is an image's own doing; mean included
        residual = (targets - left @ (shrink[:, None] * within)) / np.maximum(1.0 - own, 1e-9)[:, None]
        if (error := float((residual**2).mean())) < best:
            best, predicted = error, targets - residual
    # Predictions are relative to the classes' shares, which every image has a part in: back to the true scale.
    predicted += one_hot(labels, classes).mean(axis=0)
    called = predicted.argmax(axis=1)
    return Probe(called == labels, called, min(log_loss(sharpness * predicted, labels) for sharpness in SHARPNESS))


def nearest_mean(features: NDArray[np.floating], labels: Labels, classes: int) -> Probe:
    """The nearest class mean, each image measured against means of which it is no part."""
    rows = power_normalize(features)
    hot = one_hot(labels, classes)
    sizes = hot.sum(axis=0)
    means = (hot.T @ rows) / np.maximum(sizes, 1.0)[:, None]
    distances = (rows**2).sum(axis=1)[:, None] - 2.0 * rows @ means.T + (means**2).sum(axis=1)
    # Taking an image out of its own class's mean of n moves it away by n / (n - 1); the last of a class has none left.
    own = sizes[labels]
    index = np.arange(len(labels))
    factor = np.where(own > 1, own / np.maximum(own - 1, 1), np.inf)
    with np.errstate(invalid="ignore"):
        distances[index, labels] = np.where(own > 1, np.maximum(distances[index, labels], 0.0) * factor**2, np.inf)
    distances[:, sizes == 0] = np.inf
    called = distances.argmin(axis=1)
    return Probe(called == labels, called)


def _left(rows: Rows) -> tuple[Rows, Rows]:
    """The squared singular values of rows, and their left singular vectors `(N, rank)`."""
    images, width = rows.shape
    if images <= width:
        values, left = np.linalg.eigh(rows @ rows.T)
        kept = values > max(float(values.max(initial=0.0)) * 1e-12, 1e-300)
        return values[kept], left[:, kept]
    values, right = np.linalg.eigh(rows.T @ rows)
    kept = values > max(float(values.max(initial=0.0)) * 1e-12, 1e-300)
    return values[kept], rows @ (right[:, kept] / np.sqrt(values[kept]))
