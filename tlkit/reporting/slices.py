"""Slices: images that have something in common, and whether the model is worse on them than on the others.

Each difference has a 95 % interval corrected for the number of slices that were looked at (Bonferroni), so that one in
twenty reports without a weakness names one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tlkit.reporting.images import BRIGHTNESS, SHARPNESS, Images
from tlkit.util.statistics import difference_interval, wilson
from tlkit.util.text import counted, span

MIN_IMAGES = 10  # of a slice
MAX_VALUES = 20  # of a column: those of more are no groups
BINS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # quantiles that part a number


@dataclass(frozen=True, slots=True)
class Slice:
    """Images with a property in common; `low` to `high` is the interval of `difference`, to all others' accuracy."""

    name: str
    value: str
    images: int
    accuracy: float
    interval: tuple[float, float]  # 95 %, of the accuracy alone
    difference: float
    low: float
    high: float

    @property
    def worse(self) -> bool:
        """Return whether the model is worse on it, and not by chance."""
        return self.high < 0

    def __str__(self) -> str:
        share = f"{self.accuracy:.1%} of {counted(self.images, 'image')}"
        return f"{self.name} {self.value}: {share} (95 %: {span(self.interval)})"


def slices(
    images: Images,
    labels: Sequence[str],
    distances: NDArray[np.float32] | None,
    columns: Mapping[str, Mapping[str, str]],
) -> list[Slice]:
    """Return all slices, those first that are worst for certain; `columns` of a table have values by name of image."""
    found = [
        (name, value, rows)
        for name, value, rows in _groups(images, labels, distances, columns)
        if MIN_IMAGES <= rows.sum() <= len(rows) - MIN_IMAGES
    ]
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, len(found)))
    return sorted((_slice(images, *each, z) for each in found), key=lambda each: (each.high, each.difference))


def _slice(images: Images, name: str, value: str, rows: NDArray[np.bool_], z: float) -> Slice:
    inside, outside = images.correct[rows], images.correct[~rows]
    hits, others = int(inside.sum()), int(outside.sum())
    low, high = difference_interval(hits, len(inside), others, len(outside), z)
    accuracy, rest = hits / len(inside), others / len(outside)
    return Slice(name, value, len(inside), accuracy, wilson(hits, len(inside)), accuracy - rest, low, high)


def _groups(
    images: Images,
    labels: Sequence[str],
    distances: NDArray[np.float32] | None,
    columns: Mapping[str, Mapping[str, str]],
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield property, value and rows `(N,)` of each slice; one may have too few images."""
    for label in np.unique(images.truth):
        yield "class", labels[label], images.truth == label
    sides = np.array([(0, 0) if each is None else (each.width, each.height) for each in images.headers], np.float32)
    known = sides.min(1) > 0
    yield from _binned("shorter side in pixels", sides.min(1), known)
    ratio = sides[:, 0] / np.maximum(sides[:, 1], 1)
    for value, rows in (("portrait", ratio < 0.95), ("square", abs(ratio - 1) <= 0.05), ("landscape", ratio > 1.05)):
        yield "shape", value, rows & known
    yield from _valued("file format", [each.format if each is not None else "" for each in images.headers])
    yield from _binned("brightness", images.arrays[BRIGHTNESS])
    yield from _binned("sharpness", images.arrays[SHARPNESS])
    if distances is not None:
        yield from _binned("distance to the training images", distances)
    for name, values in columns.items():
        yield from _valued(name, [values.get(sample.name, "") for sample in images.samples])


def _binned(
    name: str, values: NDArray[np.float32], known: NDArray[np.bool_] | None = None
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield the slices between quantiles of a number; equal values are in one."""
    known = np.ones(len(values), bool) if known is None else known
    if not known.any():
        return
    edges = np.unique(np.quantile(values[known], BINS))
    for low, high in pairwise(edges):
        last = high == edges[-1]
        rows = known & (values >= low) & ((values <= high) if last else (values < high))
        yield name, f"{low:.3g} to {high:.3g}", rows


def _valued(name: str, values: Sequence[str]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield a slice for each value of a property, unless there are too many or they are numbers."""
    kinds = sorted({value for value in values if value})
    if 1 < len(kinds) <= MAX_VALUES:
        array = np.array(values, object)
        yield from ((name, kind, array == kind) for kind in kinds)
    elif len(kinds) > MAX_VALUES and (numbers := _numbers(values)) is not None:
        yield from _binned(name, numbers, np.isfinite(numbers))


def _numbers(values: Sequence[str]) -> NDArray[np.float32] | None:
    """Return values as numbers, NaN where there is none; None if they are no numbers."""
    try:
        return np.array([float(value) if value else np.nan for value in values], np.float32)
    except ValueError:
        return None
