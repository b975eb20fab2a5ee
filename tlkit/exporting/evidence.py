"""Evidence on the accuracy drop of a candidate: the images that it and fp32 classify differently.

Half a percentage point of 62 images is less than one of them. So a candidate is refused where the evidence says that
its drop exceeds the budget, by an exact test of the images that only one of the two classifies correctly (McNemar
1947), and the user is told what so few images can't decide. Where the validation split is small and the trunk is
frozen, images of the training split are counted as well, each classified by a head that was fitted without it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkit.data.dataset import Sample, folds_of, groups_of
from tlkit.errors import DataError
from tlkit.model.bundle import ORIGINAL
from tlkit.model.modules import head_logits, solve_head
from tlkit.model.reference_images import spread
from tlkit.util.statistics import binomial_tail, paired_interval
from tlkit.verification.trained import TrainedModules

# A candidate whose true drop is just the budget is refused in one of four searches. A smaller risk would let pass what
# loses twice as much, as the images are few; the next candidate costs speed, not accuracy.
RISK = 0.25
FOLDS = 5
LOST_RECALL, LOST_CHANCE = 25.0, 0.05  # percentage points of a class's recall; five images of five, or more of many


@dataclass(frozen=True, slots=True)
class Pairs:
    """Numbers of images: all, correct in fp32 alone, correct below it alone, classified differently.

    `cross_validated` of them are of the training split.
    """

    images: int
    lost: int
    gained: int
    different: int
    cross_validated: int = 0

    @classmethod
    def of(cls, fp32: NDArray[np.int64], below: NDArray[np.int64], truth: NDArray[np.int64]) -> Pairs:
        """Count the predictions `(N,)` of the same images."""
        lost, gained = (fp32 == truth) & (below != truth), (fp32 != truth) & (below == truth)
        return cls(len(truth), int(lost.sum()), int(gained.sum()), int((fp32 != below).sum()))

    def joined(self, training: Pairs) -> Pairs:
        """Return these and those of the training split together."""
        sums = (self.images + training.images, self.lost + training.lost, self.gained + training.gained)
        return Pairs(*sums, self.different + training.different, training.images)

    @property
    def drop(self) -> float:
        """The accuracy drop in percentage points."""
        return 100 * (self.lost - self.gained) / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the drop, in percentage points."""
        low, high = paired_interval(self.lost, self.gained, self.images)
        return 100 * low, 100 * high

    def exceeds(self, max_drop: float) -> bool:
        """Return whether the drop exceeds a budget in percentage points, and not just by chance (see `RISK`)."""
        allowed, decisive = self.images * max_drop / 100, self.lost + self.gained
        if self.lost - self.gained <= allowed + 1e-9:
            return False
        return binomial_tail(self.lost, decisive, min(1.0, (1 + allowed / decisive) / 2)) <= RISK

    def undecided(self, max_drop: float) -> str | None:
        """Return what so few images can't tell about a candidate within the budget; None if they tell that it is."""
        low, high = self.interval
        if high <= max_drop:
            return None
        needed = math.ceil(self.images * ((high - low) / 2 / max(max_drop, 100 / self.images)) ** 2)
        more = f"; some {math.ceil(needed / 100) * 100:,} would" if needed > self.images else ""
        return (
            f"{self.images} images can't tell a drop of {max_drop:g} percentage points from chance "
            f"(95 % interval of the drop: {low:.1f} to {high:.1f}){more}"
        )


def lost_class(fp32: NDArray[np.int64], below: NDArray[np.int64], truth: NDArray[np.int64]) -> int | None:
    """Return a class whose recall falls by a quarter or more, and not just by chance; None if there is none.

    A rare class may be lost within any budget for the accuracy of all images.
    """
    for label in np.unique(truth):
        pairs = Pairs.of(*(each[truth == label] for each in (fp32, below, truth)))
        chance = binomial_tail(pairs.lost, pairs.lost + pairs.gained, 0.5)
        if pairs.drop >= LOST_RECALL and chance <= LOST_CHANCE:
            return int(label)
    return None


class CrossValidation:
    """Images of the training split, each classified by a bundle's head that was fitted in fp32 without its group."""

    def __init__(
        self,
        modules: TrainedModules,
        samples: Sequence[Sample],
        features: NDArray[np.float32],
        truth: NDArray[np.int64],
    ) -> None:
        """Fit the heads to the fp32 features `(N, width)`. Raises DataError where they can't be fitted."""
        self.samples, self.features, self.truth = samples, features, truth
        record = modules.bundle.record
        self._folds, groups = folds_of(samples, FOLDS), groups_of(samples)
        self._heads = []
        for fold in range(FOLDS):
            rest = self._folds != fold
            own = None if groups is None else groups[rest]
            head = solve_head(modules.head, features[rest], truth[rest], len(record.labels), record.seed, own)
            if head is None:
                raise DataError(f"head {modules.head.name} learns by gradient, and is not fitted again")
            self._heads.append(head.eval())

    def rows(self, count: int, without: Collection[str]) -> NDArray[np.int64]:
        """Return up to `count` rows, evenly spaced, but for the images `without`."""
        names = set(without)
        return np.array(spread([i for i, each in enumerate(self.samples) if each.name not in names], count), np.int64)

    def pairs(self, rows: NDArray[np.int64], below: NDArray[np.float32]) -> Pairs:
        """Compare the predictions for rows with those for their features `(n, width)` below fp32."""
        return Pairs.of(self._predicted(rows, self.features[rows]), self._predicted(rows, below), self.truth[rows])

    def _predicted(self, rows: NDArray[np.int64], features: NDArray[np.float32]) -> NDArray[np.int64]:
        labels = np.zeros(len(rows), np.int64)
        for fold, head in enumerate(self._heads):
            mine = self._folds[rows] == fold
            if mine.any():
                labels[mine] = head_logits(head, features[mine]).argmax(1)
        return labels


def comparable(modules: TrainedModules, samples: Sequence[Sample]) -> bool:
    """Return whether images of the training split say something: the trunk never saw them, and classes have some."""
    record = modules.bundle.record
    counts = np.bincount([sample.label for sample in samples], minlength=len(record.labels))
    return set(record.provenance.values()) == {ORIGINAL} and int(counts.min()) >= FOLDS
