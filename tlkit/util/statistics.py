"""Intervals, paired comparisons, softmax and log loss, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", bound="np.floating[Any]")

Z_95 = 1.959964  # standard errors of a 95 % interval
IMAGINED_ROWS = 2  # with labels evenly spread, that a temperature is fitted with
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e4  # scores in votes and in squared distances both fit inside


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Balanced accuracy of one classifier minus that of another on the same images, with its standard error."""

    difference: float
    standard_error: float

    @property
    def exceeds_error(self) -> bool:
        """Return whether the first classifier leads by more than one standard error."""
        return self.difference > self.standard_error


def paired_difference(one: NDArray[np.bool_], other: NDArray[np.bool_], labels: NDArray[np.int64]) -> PairedDifference:
    """Compare two classifiers by their correct predictions `(N,)` on the same images of the classes `labels` `(N,)`.

    Only images that exactly one of them classifies correctly count. The standard error is that of McNemar's test
    (1947), under which each of these is equally likely to favor either; each class has the same weight.
    """
    share = class_shares(labels)
    signed = share * (one.astype(float) - other)
    return PairedDifference(float(signed.sum()), float(np.linalg.norm(signed)))


def class_shares(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each image `(N,)` in a mean over classes: the sum is 1, and that of every class the same."""
    counts = np.bincount(labels)
    shares: NDArray[np.float64] = 1.0 / (np.count_nonzero(counts) * counts[labels])
    return shares


def effective_images(labels: NDArray[np.int64]) -> float:
    """Return of how many images in balanced classes a mean over classes varies as much."""
    return float(1.0 / (class_shares(labels) ** 2).sum())


def balanced_interval(hits: NDArray[np.int64], sizes: NDArray[np.int64]) -> tuple[float, float]:
    """Return the 95 % interval of a mean of recalls; `hits` of `sizes` `(classes,)` images are correct.

    The deviations of the classes' own intervals are added as squares (MOVER: Zou and Donner, Statistics in Medicine
    2008). Classes without an image do not count.
    """
    known = [(hit / size, *wilson(hit, size)) for hit, size in zip(hits.tolist(), sizes.tolist(), strict=True) if size]
    recall, low, high = np.array(known).T
    middle, count = float(recall.mean()), len(recall)
    below, above = (float(np.linalg.norm(recall - bound)) / count for bound in (low, high))
    return max(0.0, middle - below), min(1.0, middle + above)


def wilson(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927); it stays in 0..1 and is valid for small samples."""
    share, spread = correct / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))  # despite rounding


def paired_interval(lost: int, gained: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of (lost - gained) / total over paired images (Agresti and Min 2005).

    `lost` and `gained` are the images that only the first, or only the second of two classifiers classifies correctly.
    """
    count, lost_more, gained_more = total + 2, lost + 0.5, gained + 0.5
    difference = lost_more - gained_more
    half = Z_95 * math.sqrt(lost_more + gained_more - difference**2 / count) / count
    return max(-1.0, difference / count - half), min(1.0, difference / count + half)


def difference_interval(hits: int, total: int, others: int, rest: int, z: float = Z_95) -> tuple[float, float]:
    """Return the interval of hits / total - others / rest of two independent groups (Newcombe 1998, method 10)."""
    one, other = hits / total, others / rest
    (low, high), (least, most) = wilson(hits, total, z), wilson(others, rest, z)
    below, above = math.hypot(one - low, most - other), math.hypot(high - one, other - least)
    return one - other - below, one - other + above


def mcnemar(lost: int, gained: int) -> float:
    """Return the p-value of McNemar's exact test (1947) that two classifiers are equally accurate.

    `lost` and `gained` are the images that only the first, or only the second classifies correctly.
    """
    return min(1.0, 2 * binomial_tail(max(lost, gained), lost + gained, 0.5))


def binomial_tail(least: int, trials: int, chance: float) -> float:
    """Return the probability of at least so many successes."""
    if chance >= 1 or least <= 0:
        return 1.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + count * math.log(chance)
        + (trials - count) * math.log1p(-chance)
        for count in range(least, trials + 1)
    ]
    return math.fsum(math.exp(each) for each in logs)


def roc_area(above: NDArray[np.floating[Any]], below: NDArray[np.floating[Any]]) -> float:
    """Return the area under the ROC curve: the probability that one of `above` exceeds one of `below`; ties count half.

    Mann and Whitney (1947).
    """
    ordered = np.sort(below)
    wins = np.searchsorted(ordered, above, "left") + np.searchsorted(ordered, above, "right")
    return float(wins.mean() / (2 * len(ordered)))


def softmax(logits: NDArray[Float]) -> NDArray[Float]:
    """Return the probabilities `(N, classes)` of logits, in their dtype."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    result: NDArray[Float] = powers / powers.sum(1, keepdims=True)
    return result


def activated(logits: NDArray[Float], activation: str) -> NDArray[Float]:
    """Return the probabilities `(N, classes)` of logits by "softmax" or "sigmoid", in their dtype."""
    if activation == "softmax":
        return softmax(logits)
    result: NDArray[Float] = (0.5 * (1 + np.tanh(0.5 * logits))).astype(logits.dtype)  # without overflow
    return result


def log_sum_exp(logits: NDArray[Float]) -> NDArray[Float]:
    """Return log(sum(exp(logits))) of each row, `(N,)`, without overflow."""
    top = logits.max(axis=1)
    result: NDArray[Float] = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return result


def log_loss(
    logits: NDArray[np.floating[Any]],
    labels: Sequence[int] | NDArray[np.int64],
    shares: NDArray[np.float64] | None = None,
) -> float:
    """Return the mean negative log-likelihood, in nats, of labels `(N,)` under the softmax of logits.

    `shares` `(N,)` are those of the images in the mean; None: each counts the same.
    """
    return float(np.average(log_sum_exp(logits) - logits[np.arange(len(labels)), labels], weights=shares))


def power_normalize(features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return features `(N, width)` with square roots if none is negative, then each row at norm 1.

    The standard heads transform features in the same way (Perronnin, Sánchez and Mensink, ECCV 2010).
    """
    rows = np.asarray(features, np.float64)
    if rows.min(initial=0.0) >= 0.0:
        rows = np.sqrt(rows)
    return unit(rows)


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Return features `(N, width)` with each row at norm 1, in their dtype: products of rows are cosines.

    A row of zeros stays.
    """
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def fit_temperature(
    scores: NDArray[np.floating[Any]], labels: NDArray[np.int64], prior: float | None = None
) -> tuple[float, float]:
    """Return the temperature T that minimizes the log loss of softmax(scores / T), and that log loss.

    `scores` `(n, classes)` must be of held-out rows. Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural
    Networks", ICML 2017, section 4.2, with the targets of Platt 1999, two imagined rows that are spread evenly over the
    classes: if every row is classified right, the bare likelihood has no optimum but T = 0. A row for each class would
    make the probabilities of few images in many classes far too low. In place of these rows, a `prior` is the standard
    deviation that log T has before any row is seen, around 0.
    """
    from scipy.optimize import minimize_scalar

    rows, classes = scores.shape
    right = scores[np.arange(rows), labels]
    imagined, penalty = (IMAGINED_ROWS, 0.0) if prior is None else (0, 0.5 / (rows * prior**2))
    expected = float(np.mean(rows * right + imagined / classes * scores.sum(axis=1))) / (rows + imagined)

    def smoothed(log_beta: float) -> float:
        beta = np.exp(log_beta)
        return float(np.mean(log_sum_exp(beta * scores)) - beta * expected) + penalty * log_beta**2

    bounds = (-np.log(MAX_TEMPERATURE), -np.log(MIN_TEMPERATURE))
    beta = float(np.exp(minimize_scalar(smoothed, bounds=bounds, method="bounded").x))
    return 1.0 / beta, float(np.mean(log_sum_exp(beta * scores) - beta * right))
