"""Statistics of the training images: counts, resolutions, and what they lack for a recommendation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.data.dataset import Dataset, Sample
from tlkit.data.decoding import UnreadableImage, header, read_file
from tlkit.util.text import listed

HEADERS = 200  # images whose resolution is read
FEW = 10  # images of a class, below which figures say little of it

Span = tuple[int, int, int]  # minimum, median, maximum


@dataclass(frozen=True, slots=True)
class SizePolicy:
    """Sizes that decide: below the minima too little can be held out to compare anything.

    From `large` images on, fine-tuning a few million weights gains more than it forgets.
    """

    min_images: int = 20
    min_per_class: int = 2
    large: int = 1000
    large_per_class: int = 100


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """Counts over the training images; `distinct` leaves out repeated images."""

    images: int
    distinct: int
    per_class: Mapping[str, int]
    distinct_per_class: Mapping[str, int]
    widths: Span  # zeros if no header could be read
    heights: Span
    formats: Mapping[str, int]

    @property
    def classes(self) -> int:
        return len(self.per_class)

    @property
    def imbalance(self) -> float:
        """Images of the largest class per image of the smallest."""
        return max(self.per_class.values()) / max(1, min(self.per_class.values()))

    @property
    def median_per_class(self) -> float:
        """Median number of distinct images per class."""
        return float(np.median(list(self.distinct_per_class.values())))

    def is_large(self, policy: SizePolicy) -> bool:
        """Return True if the dataset counts as large in the four transfer-learning scenarios."""
        return self.distinct >= policy.large and self.median_per_class >= policy.large_per_class

    def shortcomings(self, policy: SizePolicy) -> list[str]:
        """Return why a recommendation would be inconclusive; nothing if it would not."""
        return list(self._shortcomings(policy))

    def _shortcomings(self, policy: SizePolicy) -> Iterator[str]:
        if self.classes < 2:
            yield "there is only one class"
        if self.distinct < policy.min_images:
            repeated = f"distinct images of {self.images}" if self.distinct < self.images else "training images"
            yield f"{self.distinct} {repeated}, at least {policy.min_images} are needed"
        single = [label for label, count in self.distinct_per_class.items() if count < 2]
        if single and (self.classes - len(single) < 2 or 0 in self.distinct_per_class.values()):
            yield f"classes with at most one training image: {listed(single)}"
        if (median := self.median_per_class) < policy.min_per_class:
            yield f"half of the classes have at most {median:g} distinct images, {policy.min_per_class} are needed"


def gather(
    dataset: Dataset, samples: Sequence[Sample], usable: NDArray[np.bool_], deepest: NDArray[np.float32]
) -> ImageStatistics:
    """Return the statistics of the samples.

    Images with equal features count as the same image; `deepest` are their deepest features `(N, width)`.
    """
    rows = np.flatnonzero(usable).tolist()
    kept = [samples[row] for row in rows]
    seen: set[bytes] = set()
    every, distinct = Counter[str](), Counter[str]()
    for sample, row in zip(kept, rows, strict=True):
        label = dataset.labels[sample.label]
        every[label] += 1
        if (content := hashlib.blake2b(deepest[row].tobytes(), digest_size=16).digest()) not in seen:
            seen.add(content)
            distinct[label] += 1
    return ImageStatistics(
        images=len(kept),
        distinct=len(seen),
        per_class={label: every[label] for label in dataset.labels},
        distinct_per_class={label: distinct[label] for label in dataset.labels},
        **_resolutions(kept[:: max(1, len(kept) // HEADERS)]),
    )


def _resolutions(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return `widths`, `heights` and `formats` from the headers of the samples."""
    headers = []
    for sample in samples:
        try:
            headers.append(header(read_file(sample.path)))
        except UnreadableImage:
            continue

    def span(values: Sequence[int]) -> Span:
        low, middle, high = (int(statistic(values or [0])) for statistic in (np.min, np.median, np.max))
        return low, middle, high

    return {
        "widths": span([each.width for each in headers]),
        "heights": span([each.height for each in headers]),
        "formats": dict(Counter(each.format for each in headers)),
    }
