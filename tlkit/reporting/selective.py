"""Accuracy against coverage: what a model gets right of the images that it is confident about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkit.reporting.images import Images
from tlkit.util.statistics import wilson

WISHES = (0.9, 0.95, 0.99)  # accuracies
STEPS = 100  # points of the curve


@dataclass(frozen=True, slots=True)
class Threshold:
    """The least confidence to accept an answer with, so that so many of the accepted are right, and how many these are.

    It is None if no threshold reaches the accuracy.
    """

    accuracy: float  # that was wished for
    confidence: float | None
    coverage: float
    reached: tuple[float, float]  # 95 % interval of the accuracy of the accepted images


@dataclass(frozen=True, slots=True)
class Selective:
    """A curve of coverage and accuracy `(points, 2)`, from few images to all, and thresholds."""

    curve: NDArray[np.float64]
    thresholds: tuple[Threshold, ...]


def selective(images: Images) -> Selective:
    """Return how accuracy falls as less confident answers are accepted (El-Yaniv and Wiener, JMLR 2010)."""
    order = np.argsort(-images.confidence, kind="stable")
    confidence, correct = images.confidence[order], images.correct[order]
    hits = np.cumsum(correct)
    # Answers of the same confidence are accepted together: only the last of them is a threshold.
    last = np.flatnonzero(np.append(np.diff(confidence) != 0, True))
    accuracy, count = hits[last] / (last + 1), len(order)
    shown = last[np.unique(np.linspace(0, len(last) - 1, STEPS).astype(int))]
    curve = np.stack([(shown + 1) / count, hits[shown] / (shown + 1)], axis=1)
    thresholds = []
    for wish in WISHES:
        enough = np.flatnonzero(accuracy >= wish)
        if not len(enough):
            thresholds.append(Threshold(wish, None, 0.0, (0.0, 1.0)))
            continue
        end = int(last[enough[-1]])
        reached = wilson(int(hits[end]), end + 1)
        thresholds.append(Threshold(wish, float(confidence[end]), (end + 1) / count, reached))
    return Selective(curve, tuple(thresholds))


def overconfidence(images: Images) -> tuple[float, float]:
    """Return the mean confidence minus the accuracy, and its standard error: positive where the model is too sure."""
    excess = images.confidence - images.correct
    return float(excess.mean()), float(excess.std() / np.sqrt(len(excess)))
