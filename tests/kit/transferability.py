"""Transferability scores that only the benchmark of scores compares, each as in its paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tlkit.advice.scores import one_hot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels = NDArray[np.int64]


def leep(probabilities: NDArray[np.floating], labels: Labels, classes: int) -> float:
    """Return LEEP: the mean log-likelihood of labels predicted through a pretrained classifier's own classes.

    `probabilities` `(N, Z)` are the pretrained classifier's. Nguyen, Hassner, Seeger and Archambeau, "LEEP: A New
    Measure to Evaluate Transferability of Learned Representations", ICML 2020, section 3.
    """
    shares = np.asarray(probabilities, np.float64)
    joint = one_hot(labels, classes).T @ shares / len(labels)  # P(y, z)
    given = joint / np.maximum(joint.sum(axis=0), np.finfo(np.float64).tiny)  # P(y | z)
    expected = (shares * given[labels]).sum(axis=1)
    return float(np.log(np.maximum(expected, np.finfo(np.float64).tiny)).mean())


def nce(source: Labels, labels: Labels) -> float:
    """Return NCE: minus the conditional entropy (nats) of the labels given a classifier's own predictions `(N,)`.

    Tran, Nguyen and Hassner, "Transferability and Hardness of Supervised Classification Tasks", ICCV 2019, section 3.
    """
    _, chosen = np.unique(source, return_inverse=True)
    joint = np.zeros((int(chosen.max()) + 1, int(labels.max()) + 1))
    np.add.at(joint, (chosen, labels), 1.0 / len(labels))
    given = joint / joint.sum(axis=1, keepdims=True)
    return float((joint[joint > 0] * np.log(given[joint > 0])).sum())
