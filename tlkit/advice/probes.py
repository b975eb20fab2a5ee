"""Probes: the accuracy to expect of features, by leave-one-out cross-validation.

Two probes, both exact and without a loop over folds: ridge regression to the classes, whose leave-one-out predictions
follow from one decomposition (Allen's PRESS; Golub, Heath and Wahba 1979), and the nearest class mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkit.advice.scores import Labels, left_singular, one_hot
from tlkit.util.statistics import log_loss, power_normalize, wilson

STRENGTHS = tuple(10.0**step for step in range(-6, 2))  # of the penalty, as shares of the features' total variance
SHARPNESS = tuple(2.0 ** (step / 2) for step in range(-4, 17))  # of the softmax over ridge regression's predictions


@dataclass(frozen=True, slots=True)
class Probe:
    """Leave-one-out predictions `(N,)`, which of them are `correct` `(N,)`, and their log loss.

    `log_loss` is the mean over the images, in nats, at the best temperature; None for a probe without probabilities.
    """

    correct: NDArray[np.bool_]
    predicted: Labels
    log_loss: float | None = None

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return float(self.correct.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson 1927)."""
        return wilson(int(self.correct.sum()), len(self.correct))


def ridge(features: NDArray[np.floating], labels: Labels, classes: int) -> Probe:
    """Return the linear probe: least squares to the classes, the penalty chosen by the leave-one-out squared error.

    The prediction for an image is the class with the greatest value under a fit to all others.
    """
    rows = power_normalize(features)
    rows -= rows.mean(axis=0)
    targets = one_hot(labels, classes)
    targets -= targets.mean(axis=0)
    values, left = left_singular(rows, 1e-12)
    within = left.T @ targets
    squared = left**2
    total = float(values.sum()) or 1.0
    best, values_left_out = np.inf, np.zeros_like(targets)
    for strength in STRENGTHS:
        shrink = values / (values + strength * total)
        leverage = squared @ shrink + 1.0 / len(rows)  # of an image on its own prediction; mean included
        residual = (targets - left @ (shrink[:, None] * within)) / np.maximum(1.0 - leverage, 1e-9)[:, None]
        if (error := float((residual**2).mean())) < best:
            best, values_left_out = error, targets - residual
    # The values are relative to the classes' shares, which every image contributes to: back to the true scale.
    values_left_out += one_hot(labels, classes).mean(axis=0)
    predicted = values_left_out.argmax(axis=1)
    best_loss = min(log_loss(sharpness * values_left_out, labels) for sharpness in SHARPNESS)
    return Probe(predicted == labels, predicted, best_loss)


def nearest_mean(features: NDArray[np.floating], labels: Labels, classes: int) -> Probe:
    """Return the nearest-class-mean probe, each image measured against means that leave it out."""
    rows = power_normalize(features)
    hot = one_hot(labels, classes)
    sizes = hot.sum(axis=0)
    means = (hot.T @ rows) / np.maximum(sizes, 1.0)[:, None]
    distances = (rows**2).sum(axis=1)[:, None] - 2.0 * rows @ means.T + (means**2).sum(axis=1)
    # Leaving an image out of its own class's mean of n scales its distance by n / (n - 1); a class of one has no mean.
    own = sizes[labels]
    index = np.arange(len(labels))
    factor = np.where(own > 1, own / np.maximum(own - 1, 1), np.inf)
    with np.errstate(invalid="ignore"):
        distances[index, labels] = np.where(own > 1, np.maximum(distances[index, labels], 0.0) * factor**2, np.inf)
    distances[:, sizes == 0] = np.inf
    predicted = distances.argmin(axis=1)
    return Probe(predicted == labels, predicted)
