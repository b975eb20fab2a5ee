"""What there is to learn from: counts, resolutions, and whether it is enough to tell anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tlkit.data.dataset import Dataset, Sample
from tlkit.data.preprocessing import UnreadableImage, header
from tlkit.util.text import listed

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOOKED_AT = 200  # images whose resolution is read
# What it takes to tell one way from another: below these, the interval of any accuracy spans most of what could be.
FEWEST_IMAGES, FEWEST_PER_CLASS = 20, 5
# From here on a set counts as large: fine-tuning a few million weights gains more than it forgets.
LARGE, LARGE_PER_CLASS = 1000, 100


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Counts over the images that there are to learn from; `distinct` leaves out repeated pictures."""

    images: int
    distinct: int
    per_class: Mapping[str, int]
    distinct_per_class: Mapping[str, int]
    widths: tuple[int, int, int]  # least, median, greatest; zeros where no header could be read
    heights: tuple[int, int, int]
    formats: Mapping[str, int]

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.per_class)

    @property
    def imbalance(self) -> float:
        """How many times as many images the largest class has as the smallest."""
        return max(self.per_class.values()) / max(1, min(self.per_class.values()))

    @property
    def typical(self) -> float:
        """The median number of distinct images of a class."""
        return float(np.median(list(self.distinct_per_class.values())))

    @property
    def large(self) -> bool:
        """Whether the set counts as large in the four cases of the craft."""
        return self.distinct >= LARGE and self.typical >= LARGE_PER_CLASS

    def lacking(self) -> list[str]:
        """Why nothing can be told from them; empty where something can."""
        return list(self._lacking())

    def _lacking(self) -> Iterator[str]:
        if self.classes < 2:
            yield "there is only one class"
        if self.distinct < FEWEST_IMAGES:
            yield f"{_images(self.distinct, self.images)}, fewer than {FEWEST_IMAGES}"
        alone = [label for label, count in self.distinct_per_class.items() if count < 2]
        if alone:
            yield f"classes with a single image or none to learn from: {listed(alone, 3)}"
        if self.typical < FEWEST_PER_CLASS:
            yield f"half of the classes have {self.typical:g} distinct images or fewer, {FEWEST_PER_CLASS} are needed"


def gather(
    dataset: Dataset, samples: Sequence[Sample], usable: NDArray[np.bool_], deepest: NDArray[np.float32]
) -> DataFacts:
    """Facts of the samples; `deepest` has their features `(N, width)`: the same features are the same picture."""
    kept = [sample for sample, good in zip(samples, usable, strict=True) if good]
    first: set[bytes] = set()
    every, distinct = Counter[str](), Counter[str]()
    for sample, row in zip(kept, deepest[usable], strict=True):
        label = dataset.labels[sample.label]
        every[label] += 1
        if (content := row.tobytes()) not in first:
            first.add(content)
            distinct[label] += 1
    formats, sizes = Counter[str](), []
    for sample in kept[:: max(1, len(kept) // LOOKED_AT)]:
        try:
            read = header(sample.path.read_bytes())
        except (OSError, UnreadableImage):
            continue
        formats[read.format] += 1
        sizes.append((read.width, read.height))
    spans = [tuple(int(f(side)) for f in (np.min, np.median, np.max)) for side in np.array(sizes or [(0, 0)]).T]
    counts = {label: every[label] for label in dataset.labels}
    return DataFacts(
        images=len(kept),
        distinct=len(first),
        per_class=counts,
        distinct_per_class={label: distinct[label] for label in dataset.labels},
        widths=spans[0],  # type: ignore[arg-type]  # three of them, which mypy can't count
        heights=spans[1],  # type: ignore[arg-type]
        formats=dict(formats),
    )


def _images(distinct: int, images: int) -> str:
    return f"there are only {images} images" if distinct == images else f"of {images} images {distinct} are distinct"
