"""Duplicates, exact or re-encoded; a duplicate across splits is leakage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkit.audit.fingerprints import FREQUENCIES, Fingerprint
from tlkit.data.dataset import Dataset

# Squared difference of two sketches as a share of the product of their contrasts. In 600 images each of four sets,
# re-encoded images were within 0.019 (downscaled thumbnails of 32 pixels; photographs within 0.006), and other images
# beyond 0.017 (garments), 0.046 (hands), 0.17 (thumbnails) and 0.37 (photographs).
MAX_DIFFERENCE = 0.013
MAX_COLOR_DIFFERENCE = 24.0  # levels, of the mean of a color: the same shape in another color is another image
MIN_CONTRAST = 2.0  # levels of gray; an image with less has nothing to compare
BLOCK = 1024  # rows compared at once


@dataclass(frozen=True, slots=True)
class Pair:
    """Indices of two samples that show the same image; `exact` if their bytes are the same."""

    first: int
    second: int
    exact: bool


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two samples that show the same image, with their splits and labels; `exact` if their bytes are the same."""

    first: str
    second: str
    exact: bool
    splits: tuple[str, str]
    labels: tuple[str, str]

    @property
    def leakage(self) -> bool:
        """True if the two are in different splits."""
        return self.splits[0] != self.splits[1]

    @property
    def label_conflict(self) -> bool:
        """True if the two have different labels."""
        return self.labels[0] != self.labels[1]

    @property
    def problems(self) -> str:
        """Kind of the duplicate and what is wrong with it, separated by commas."""
        conflicts = {"across splits": self.leakage, "across classes": self.label_conflict}
        return ", ".join(["exact" if self.exact else "near", *(what for what, found in conflicts.items() if found)])


def described(pairs: Sequence[Pair], dataset: Dataset) -> list[NearDuplicate]:
    """Return the pairs with names, splits and labels: leakage first, then label conflicts."""
    found = []
    for pair in pairs:
        one, other = dataset.samples[pair.first], dataset.samples[pair.second]
        labels = dataset.labels[one.label], dataset.labels[other.label]
        found.append(NearDuplicate(one.name, other.name, pair.exact, (one.split, other.split), labels))
    return sorted(found, key=lambda each: (not each.leakage, not each.label_conflict))


def find_pairs(fingerprints: Sequence[Fingerprint]) -> list[Pair]:
    """Return all pairs of duplicates; of n files with the same bytes, the n - 1 pairs with the first of them."""
    first: dict[str, int] = {}
    found = []
    for index, each in enumerate(fingerprints):
        if not each.sha256:
            continue
        if each.sha256 in first:
            found.append(Pair(first[each.sha256], index, exact=True))
        else:
            first[each.sha256] = index
    rows = np.array(list(first.values()), np.int64)
    return found + [Pair(int(rows[i]), int(rows[j]), exact=False) for i, j in _near(fingerprints, rows)]


def groups(pairs: Sequence[Pair], count: int) -> NDArray[np.int64]:
    """Return a group number for each of `count` samples `(count,)`; samples that show the same image share it."""
    number = np.arange(count)
    for pair in pairs:
        number[number == number[pair.second]] = number[pair.first]
    return number


def _near(fingerprints: Sequence[Fingerprint], rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the places in `rows` of two files with similar sketches."""
    if len(rows) < 2:
        return
    sketches = np.stack([fingerprints[row].sketch for row in rows])
    shapes, colors = sketches[:, :FREQUENCIES], sketches[:, FREQUENCIES:]
    power = (shapes**2).sum(axis=1)
    contrast = np.sqrt(power)
    plain = contrast < MIN_CONTRAST
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        difference = power[block, None] + power - 2 * shapes[block] @ shapes.T
        near = difference < MAX_DIFFERENCE * contrast[block, None] * contrast
        near &= ~(plain[block, None] | plain)
        for i, j in zip(*np.nonzero(near), strict=True):
            if start + i < j and np.abs(colors[start + i] - colors[j]).max() <= MAX_COLOR_DIFFERENCE:
                yield start + int(i), int(j)
