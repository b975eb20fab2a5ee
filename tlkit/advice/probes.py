"""Probes: the balanced accuracy to expect of features, by leave-one-out cross-validation.

Two probes, both exact and without a loop over fits: ridge regression to the classes, whose leave-one-out predictions
follow from one decomposition (Allen's PRESS; Golub, Heath and Wahba 1979), and the nearest class mean. Of images in
groups, a whole group is left out at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkit.advice.scores import Labels, left_singular, one_hot
from tlkit.util.statistics import balanced_interval, class_shares, log_loss, power_normalize

STRENGTHS = tuple(10.0**step for step in range(-6, 2))  # of the penalty, as shares of the features' total variance
SHARPNESS = tuple(2.0 ** (step / 2) for step in range(-4, 17))  # of the softmax over ridge regression's predictions


@dataclass(frozen=True, slots=True)
class Probe:
    """Labels and leave-one-out predictions `(N,)`, and their log loss.

    `log_loss` is the mean over the classes, in nats, at the best temperature; None for a probe without probabilities.
    """

    labels: Labels
    predicted: Labels
    log_loss: float | None = None

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return which predictions are correct `(N,)`."""
        correct: NDArray[np.bool_] = self.predicted == self.labels
        return correct

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes of the share of correct predictions."""
        return float((class_shares(self.labels) * self.correct).sum())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the balanced accuracy."""
        return balanced_interval(np.bincount(self.labels, self.correct), np.bincount(self.labels))


def ridge(features: NDArray[np.floating], labels: Labels, classes: int, groups: Labels | None = None) -> Probe:
    """Return the linear probe: least squares to the classes, the penalty chosen by the leave-one-out squared error.

    The prediction for an image is the class with the greatest value under a fit to all others, or to all of other
    `groups` `(N,)`.
    """
    rows = power_normalize(features)
    rows -= rows.mean(axis=0)
    targets = one_hot(labels, classes)
    targets -= targets.mean(axis=0)
    values, left = left_singular(rows, 1e-12)
    within = left.T @ targets
    squared = left**2
    total = float(values.sum()) or 1.0
    together = _together(groups)
    best, values_left_out = np.inf, np.zeros_like(targets)
    for strength in STRENGTHS:
        shrink = values / (values + strength * total)
        leverage = squared @ shrink + 1.0 / len(rows)  # of an image on its own prediction; mean included
        error_within = targets - left @ (shrink[:, None] * within)
        residual = error_within / np.maximum(1.0 - leverage, 1e-9)[:, None]
        for members in together:  # the same for several rows at a time: their block of the hat matrix
            hat = (left[members] * shrink) @ left[members].T + 1.0 / len(rows)
            residual[members] = np.linalg.lstsq(np.eye(len(members)) - hat, error_within[members], rcond=1e-9)[0]
        if (error := float((residual**2).mean())) < best:
            best, values_left_out = error, targets - residual
    # The values are relative to the classes' shares, which every image contributes to: back to the true scale.
    values_left_out += one_hot(labels, classes).mean(axis=0)
    predicted = values_left_out.argmax(axis=1)
    shares = class_shares(labels)
    best_loss = min(log_loss(sharpness * values_left_out, labels, shares) for sharpness in SHARPNESS)
    return Probe(labels, predicted, best_loss)


def _together(groups: Labels | None) -> list[Labels]:
    """Return the rows of each group of several images."""
    if groups is None:
        return []
    order = np.argsort(groups, kind="stable")
    return [rows for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(rows) > 1]


def nearest_mean(features: NDArray[np.floating], labels: Labels, classes: int, groups: Labels | None = None) -> Probe:
    """Return the nearest-class-mean probe, each image measured against means that leave it, or its group, out."""
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
    for members in _together(groups):
        others = sizes - hot[members].sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            left = (means * sizes[:, None] - hot[members].T @ rows[members]) / others[:, None]
        apart = ((rows[members][:, None] - left[None]) ** 2).sum(axis=2)
        distances[members] = np.where(others > 0, apart, np.inf)
    predicted = distances.argmin(axis=1)
    return Probe(labels, predicted)
