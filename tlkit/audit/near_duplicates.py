"""Duplicates, exact or re-encoded; a duplicate across splits is leakage.

Pictures of a regular pattern, or taken in a fixed rig, have similar sketches though they differ in what matters: the
threshold follows from the distances in the set, and a pair is confirmed at a higher resolution, block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlkit.audit.fingerprints import FREQUENCIES, SMALL, Fingerprint
from tlkit.data.dataset import Dataset
from tlkit.data.decoding import UnreadableImage, header
from tlkit.data.preprocessing import load
from tlkit.util.resources import cores

# Squared difference of two sketches as a share of the product of their contrasts. In 600 images each of four sets,
# re-encoded images were within 0.019 (downscaled thumbnails of 32 pixels; photographs within 0.006), and other images
# beyond 0.017 (garments), 0.046 (hands), 0.17 (thumbnails) and 0.37 (photographs).
MAX_DIFFERENCE = 0.013
TYPICAL, SHARE = 0.01, 0.2  # at most this share of the difference that one in a hundred pairs of the set is below
SAMPLE = 500  # images whose pairs show that
MAX_COLOR_DIFFERENCE = 24.0  # levels, of the mean of a color: the same shape in another color is another image
MIN_CONTRAST = 2.0  # levels of gray; an image with less has nothing to compare
BLOCK = 1024  # rows compared at once
# Error in the worst block as a share of the contrast. Re-encoded images were within 0.42, thumbnails of 32 pixels
# within 0.8; other images of a simulated rig, a specimen before one background, beyond 0.57.
MAX_BLOCK_ERROR, MAX_BLOCK_ERROR_SMALL = 0.5, 0.7
RESOLUTION, SMALL_SIDE = 256, 64  # pixels of the side at which pairs are confirmed, at most; below, blocks are larger


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


def find_pairs(fingerprints: Sequence[Fingerprint], paths: Sequence[Path]) -> list[Pair]:
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
    near = [Pair(int(rows[i]), int(rows[j]), exact=False) for i, j in _near(fingerprints, rows)]
    with ThreadPoolExecutor(cores()) as threads:
        same = threads.map(lambda pair: shows_same(paths[pair.first], paths[pair.second]), near)
        return found + [pair for pair, confirmed in zip(near, same, strict=True) if confirmed]


def shows_same(one: Path, other: Path) -> bool:
    """Return whether two files show the same image: no block of it differs by more than encoding changes.

    Both are compared at the resolution of the smaller one, but for brightness and contrast.
    """
    try:
        sides = [min(found.width, found.height) for found in (header(path.read_bytes()) for path in (one, other))]
        square = replace(SMALL, size=int(np.clip(min(sides), SMALL.size // 2, RESOLUTION)), interpolation="bicubic")
        left, right = (load(path, square).astype(np.float64).mean(axis=2) for path in (one, other))
    except (OSError, UnreadableImage):
        return False
    left, right = left - left.mean(), right - right.mean()
    error = (left - right * (left * right).sum() / max((right**2).sum(), 1e-9)) ** 2
    count, most = (8, MAX_BLOCK_ERROR) if square.size >= SMALL_SIDE else (4, MAX_BLOCK_ERROR_SMALL)
    side = square.size // count
    blocks = error[: count * side, : count * side].reshape(count, side, count, side).mean(axis=(1, 3))
    return bool(np.sqrt(blocks.max()) <= most * left.std())


def _limit(shapes: NDArray[np.float32], contrast: NDArray[np.float32]) -> float:
    """Return the greatest difference of duplicates, as a share of the product of two contrasts, in this set."""
    some = np.random.default_rng(0).permutation(np.flatnonzero(contrast >= MIN_CONTRAST))[:SAMPLE]
    if len(some) < 2:
        return MAX_DIFFERENCE
    rows = shapes[some].astype(np.float64) / contrast[some, None]
    sizes = (rows**2).sum(axis=1)
    ratio = contrast[some, None] / contrast[some]
    differences = sizes[:, None] * ratio + sizes * ratio.T - 2 * rows @ rows.T
    # Duplicates are among the pairs: one of each image would be two in `len(some)`.
    low = min(0.5, max(TYPICAL, 2 / len(some)))
    return min(MAX_DIFFERENCE, SHARE * float(np.quantile(differences[np.triu_indices(len(some), 1)], low)))


def groups(pairs: Sequence[Pair], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a group number for each sample `(N,)`: given ones, joined for samples that show the same image."""
    joined = numbers.copy()
    for pair in pairs:
        joined[joined == joined[pair.second]] = joined[pair.first]
    return joined


def _near(fingerprints: Sequence[Fingerprint], rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the places in `rows` of two files with similar sketches."""
    if len(rows) < 2:
        return
    sketches = np.stack([fingerprints[row].sketch for row in rows])
    shapes, colors = sketches[:, :FREQUENCIES], sketches[:, FREQUENCIES:]
    power = (shapes**2).sum(axis=1)
    contrast = np.sqrt(power)
    plain, limit = contrast < MIN_CONTRAST, _limit(shapes, contrast)
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        difference = power[block, None] + power - 2 * shapes[block] @ shapes.T
        near = difference < limit * contrast[block, None] * contrast
        near &= ~(plain[block, None] | plain)
        for i, j in zip(*np.nonzero(near), strict=True):
            if start + i < j and np.abs(colors[start + i] - colors[j]).max() <= MAX_COLOR_DIFFERENCE:
                yield start + int(i), int(j)
