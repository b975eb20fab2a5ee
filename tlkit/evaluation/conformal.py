"""Sets of labels that hold the right one at a wished rate: split conformal prediction.

The score of a label is 1 minus its probability, and a set has all labels up to a threshold: the quantile of the true
labels' scores on held-out images, which promises the coverage for images like them (Sadinle, Lei and Wasserman, "Least
Ambiguous Set-Valued Classifiers With Bounded Error Levels", JASA 2019). A class with enough held-out images has a
threshold of its own, so that rare classes are covered too (Vovk, "Conditional validity of inductive conformal
predictors", 2012). The most probable label is always in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlkit.errors import UsageError
from tlkit.graph.metadata import reading
from tlkit.util.schema import parse_json, read_as
from tlkit.util.statistics import wilson
from tlkit.util.text import span

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99)
SHOWN = (0.8, 0.9, 0.95)  # of the levels
MIN_OWN = 40  # held-out images of a class with a threshold of its own
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Largest score of a label in the set, by level of coverage: of all images, and of classes by their number."""

    levels: tuple[float, ...]
    pooled: tuple[float, ...]
    classes: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return them as the JSON that a graph stores."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, classes: int, file: Path | None = None) -> Thresholds:
        """Return thresholds that a graph of so many classes stores. Raises ArtifactError if they are invalid."""
        with reading(file):
            found: Thresholds = read_as(cls, parse_json(text), "coverage")
            if {len(each) for each in (found.pooled, *found.classes.values())} != {len(found.levels)}:
                raise ValueError("coverage has not one threshold for each level")
            if not {*found.classes} <= {str(number) for number in range(classes)}:
                raise ValueError("coverage names a class that does not exist")
        return found

    def sets(self, probabilities: NDArray[np.float32], coverage: float) -> NDArray[np.bool_]:
        """Return which labels are in the set of each image `(N, classes)`, at the next level that is not lower.

        Raises UsageError for a coverage above all levels, or not above 0.
        """
        level = next((index for index, each in enumerate(self.levels) if each >= coverage - 1e-9), None)
        if level is None or not coverage > 0:
            what = f"a coverage of {coverage:g} can't be promised"
            raise UsageError(what, do=f"choose one from {self.levels[0]:g} to {self.levels[-1]:g}")
        limits = np.full(probabilities.shape[1], self.pooled[level])
        for number, own in self.classes.items():
            limits[int(number)] = own[level]
        chosen: NDArray[np.bool_] = 1.0 - probabilities.astype(np.float64) <= limits
        chosen[np.arange(len(chosen)), probabilities.argmax(1)] = True
        return chosen


@dataclass(frozen=True, slots=True)
class Achieved:
    """Share of images whose set holds the right label, with its 95 % interval, and the mean number of labels."""

    coverage: float  # that was wished for
    achieved: float
    interval: tuple[float, float]
    set_size: float
    images: int

    def __str__(self) -> str:
        share = f"{self.achieved:.1%} (95 %: {span(self.interval)})"
        return (
            f"sets for a coverage of {self.coverage:.0%} hold the right label for {share}, {self.set_size:.2f} labels"
        )


def fit(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Thresholds:
    """Return the thresholds by the probabilities `(N, classes)` of held-out images with these labels `(N,)`."""
    scores = 1.0 - probabilities[np.arange(len(labels)), labels].astype(np.float64)
    own = [int(label) for label, count in enumerate(np.bincount(labels)) if count >= MIN_OWN]
    return Thresholds(LEVELS, _quantiles(scores), {str(label): _quantiles(scores[labels == label]) for label in own})


def achieved(thresholds: Thresholds, probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> list[Achieved]:
    """Return the coverage on images that the thresholds were not fitted to, at the levels `SHOWN`."""
    return _measured({level: thresholds.sets(probabilities, level) for level in SHOWN}, labels)


def cross_validated(probabilities: NDArray[np.float32], labels: NDArray[np.int64], seed: int) -> list[Achieved]:
    """Return the coverage on held-out images, of which each fold is measured with thresholds from the others."""
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    sets = {level: np.zeros(probabilities.shape, bool) for level in SHOWN}
    for each in np.unique(fold):
        rest = fold != each
        thresholds = fit(probabilities[rest], labels[rest]) if rest.any() else Thresholds(LEVELS, (1.0,) * len(LEVELS))
        for level, chosen in sets.items():
            chosen[~rest] = thresholds.sets(probabilities[~rest], level)
    return _measured(sets, labels)


def _measured(sets: Mapping[float, NDArray[np.bool_]], labels: NDArray[np.int64]) -> list[Achieved]:
    found = []
    for level, chosen in sets.items():
        hits, count = int(chosen[np.arange(len(labels)), labels].sum()), len(labels)
        found.append(Achieved(level, hits / count, wilson(hits, count), float(chosen.sum(1).mean()), count))
    return found


def _quantiles(scores: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the threshold for each level: of n scores the ceil((n + 1) level)-th, and 1, all labels, beyond the last.

    Rounded up, so that the stored number admits what the exact one admits.
    """
    ordered, count = np.sort(scores), len(scores)
    places = [math.ceil((count + 1) * level - 1e-9) for level in LEVELS]
    return tuple(1.0 if place > count else math.ceil(float(ordered[place - 1]) * 1e7) / 1e7 for place in places)
