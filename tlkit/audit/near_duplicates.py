"""Pictures that are there more than once: the same bytes, or the same picture encoded anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tlkit.audit.shortcuts import SHAPES, Look

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Of two sketches, the squared difference as a share of the product of their contrasts. In 600 images each of four sets,
# pictures encoded anew were within 0.019 (thumbnails of 32 pixels made smaller; photographs within 0.006), and others
# beyond 0.017 (garments), 0.046 (hands), 0.17 (thumbnails) and 0.37 (photographs).
DIFFERENCE = 0.013
COLORS = 24.0  # levels by which the mean of a colour may differ: the same shape in another colour is another picture
CONTRAST = 2.0  # levels of grey; in what has less there is nothing to compare
BLOCK = 1024  # rows compared at once


@dataclass(frozen=True, slots=True)
class Pair:
    """Two samples, by index, that show the same picture; `exact` where even the bytes are the same."""

    one: int
    other: int
    exact: bool


def pairs(looks: Sequence[Look]) -> list[Pair]:
    """All pairs of duplicates; of n that are the same by their bytes, the n - 1 with the first of them."""
    first: dict[str, int] = {}
    found = []
    for index, look in enumerate(looks):
        if not look.sha256:
            continue
        if look.sha256 in first:
            found.append(Pair(first[look.sha256], index, exact=True))
        else:
            first[look.sha256] = index
    rows = np.array(list(first.values()), np.int64)
    return found + [Pair(int(rows[i]), int(rows[j]), exact=False) for i, j in _near(looks, rows)]


def groups(found: Sequence[Pair], count: int) -> NDArray[np.int64]:
    """A number for each of `count` samples `(count,)`, the same for those that are the same picture."""
    number = np.arange(count)
    for pair in found:
        number[number == number[pair.other]] = number[pair.one]
    return number


def _near(looks: Sequence[Look], rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Places in `rows` of two that look the same from afar."""
    if len(rows) < 2:
        return
    sketches = np.stack([looks[row].sketch for row in rows])
    shapes, colors = sketches[:, :SHAPES], sketches[:, SHAPES:]
    power = (shapes**2).sum(axis=1)
    contrast = np.sqrt(power)
    plain = contrast < CONTRAST
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        difference = power[block, None] + power - 2 * shapes[block] @ shapes.T
        near = difference < DIFFERENCE * contrast[block, None] * contrast
        near &= ~(plain[block, None] | plain)
        for i, j in zip(*np.nonzero(near), strict=True):
            if start + i < j and np.abs(colors[start + i] - colors[j]).max() <= COLORS:
                yield start + int(i), int(j)
