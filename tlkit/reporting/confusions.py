"""Mistakes: classes that are confused, the most confident ones, and those that another model fixes or makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.errors import DataError
from tlkit.evaluation.evaluate import run_samples
from tlkit.evaluation.metrics import Metrics, score
from tlkit.plugin.contract import PROBABILITIES, Progress
from tlkit.reporting.images import Images
from tlkit.runtime.model import Model
from tlkit.util.statistics import mcnemar, paired_interval

MAX_CLASSES = 25  # in a matrix; of more, those with the most mistakes
MAX_PAIRS, MAX_MISTAKES, MAX_CHANGED = 8, 24, 12
EXAMPLES = 4  # pictures of a pair


@dataclass(frozen=True, slots=True)
class Pair:
    """Images of one class that were predicted as another, the most confident first."""

    true: int
    predicted: int
    images: int
    of: int  # images of the class
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Another model on the same images: rows that only it gets right, or only the first one; the most confident first.

    `p` is that of McNemar's exact test; `interval` the 95 % interval of the difference in accuracy, the other's minus
    the first's; `recalls` that of each class for which there are images.
    """

    model: str
    metrics: Metrics
    images: int
    fixed: tuple[int, ...]
    broken: tuple[int, ...]
    fixed_images: int
    broken_images: int
    p: float
    interval: tuple[float, float]
    recalls: dict[int, float]
    predicted: NDArray[np.int64]

    def summary(self) -> str:
        """Return the verdict in one line."""
        low, high = self.interval
        word = "better" if self.fixed_images > self.broken_images else "worse"
        verdict = word if self.p < 0.05 else "no different, as far as these images tell"
        counts = f"fixes {self.fixed_images} and breaks {self.broken_images} of {self.images} images"
        return f"{self.model} is {verdict}: it {counts} (p = {self.p:.2g}; {low:+.1%} to {high:+.1%})"


def ordered(confusion: NDArray[np.int64]) -> list[int]:
    """Return the classes to show, those that are mistaken for each other beside each other.

    They are in the order of the second eigenvector of the graph Laplacian, of which the weights are the mistakes
    between two classes (Atkins, Boman and Hendrickson, SIAM Journal on Computing 1998).
    """
    wrong = confusion + confusion.T
    np.fill_diagonal(wrong, 0)
    most = np.argsort(-wrong.sum(0), kind="stable")[:MAX_CLASSES]
    chosen = np.sort(most)
    weights = wrong[np.ix_(chosen, chosen)].astype(float)
    if len(chosen) < 4 or not weights.any():
        return [int(each) for each in chosen]
    weights += 1e-3 * weights.max()  # connected, whatever was mistaken
    _, vectors = np.linalg.eigh(np.diag(weights.sum(0)) - weights)
    second = vectors[:, 1] * (1 if vectors[0, 1] <= 0 else -1)
    return [int(each) for each in chosen[np.argsort(second, kind="stable")]]


def pairs(images: Images, confusion: NDArray[np.int64]) -> list[Pair]:
    """Return the pairs of classes that are confused most often."""
    found = sorted((-int(confusion[i, j]), int(i), int(j)) for i, j in np.argwhere(confusion) if i != j)
    made = []
    for count, i, j in found[:MAX_PAIRS]:
        rows = np.flatnonzero((images.truth == i) & (images.predicted == j))
        made.append(Pair(i, j, -count, int(confusion[i].sum()), tuple(_most_confident(images, rows, EXAMPLES))))
    return made


def mistakes(images: Images) -> list[int]:
    """Return the rows of the mistakes made with the most confidence."""
    return _most_confident(images, np.flatnonzero(~images.correct), MAX_MISTAKES)


def compare(images: Images, labels: Sequence[str], other: Model, progress: Progress) -> Comparison:
    """Run another model of the same classes, in whatever order, on the same images."""
    if sorted(other.labels) != sorted(labels):
        only = sorted(set(other.labels) ^ set(labels))
        raise DataError(f"it has other classes: {', '.join(map(repr, only[:3]))}", file=other.file)
    tick = progress("the other model", len(images.samples))
    outputs = run_samples(other, images.samples, tick)
    if outputs.rejected:
        name, reason = next(iter(outputs.rejected.items()))
        raise DataError(f"one model can use it and the other can't: {reason}", file=name)
    order = [other.labels.index(label) for label in labels]
    probabilities = outputs.arrays[PROBABILITIES][:, order]
    predicted = probabilities.argmax(1)
    right = predicted == images.truth
    fixed, broken = np.flatnonzero(right & ~images.correct), np.flatnonzero(~right & images.correct)
    classes = np.unique(images.truth)
    return Comparison(
        model=other.name,
        metrics=score(probabilities, images.truth),
        images=len(right),
        fixed=tuple(_most_confident(images, fixed, MAX_CHANGED)),
        broken=tuple(_most_confident(images, broken, MAX_CHANGED)),
        fixed_images=len(fixed),
        broken_images=len(broken),
        p=mcnemar(len(broken), len(fixed)),
        interval=paired_interval(len(fixed), len(broken), len(right)),
        recalls={int(each): float(right[images.truth == each].mean()) for each in classes},
        predicted=predicted,
    )


def _most_confident(images: Images, rows: NDArray[Any], most: int) -> list[int]:
    order = np.argsort(-images.confidence[rows], kind="stable")
    return [int(row) for row in rows[order[:most]]]
