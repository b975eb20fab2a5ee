"""Pictures that are there more than once: the same bytes, or the same picture encoded anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tlkit.learn.audit.files import Look

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Both must hold: other pictures of the same thing are often near by their features, and flat ones by their hash.
# What they find and miss is measured by benchmarks/advise.py.
COSINE, BITS = 0.95, 6
BLOCK = 1024  # rows compared at once


@dataclass(frozen=True, slots=True)
class Pair:
    """Two samples, by index, that show the same picture; `exact` where even the bytes are the same."""

    one: int
    other: int
    exact: bool


def pairs(looks: Sequence[Look], features: NDArray[np.float32], usable: NDArray[np.bool_]) -> list[Pair]:
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
    candidates = np.array([index for index in first.values() if usable[index]], np.int64)
    found += [Pair(int(candidates[i]), int(candidates[j]), exact=False) for i, j in _near(looks, features, candidates)]
    return found


def _near(looks: Sequence[Look], features: NDArray[np.float32], rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Places in `rows` of two that are near by both their features and their perceptual hash."""
    if len(rows) < 2:
        return
    vectors = features[rows]
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    bits = np.stack([looks[row].perceptual for row in rows]).astype(np.float32) * 2 - 1
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        # Of 64 signs, n that differ leave a product of 64 - 2n.
        near = (vectors[block] @ vectors.T > COSINE) & (bits[block] @ bits.T >= 64 - 2 * BITS)
        for i, j in zip(*np.nonzero(near), strict=True):
            if start + i < j:
                yield start + int(i), int(j)
