"""What the files of a set say without their content: which are the same, and whether they betray the class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tlkit.data.images import Header, Rejected, header, load
from tlkit.deploy.session import cores
from tlkit.plugin.contract import Pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels = NDArray[np.int64]

GREY = Pixels(32, mean=(0.5,) * 3, std=(0.5,) * 3, crop=1.0, filter="bilinear")
EXPLAINED = 0.15  # share of the doubt about the class that a property must take away to be a suspect
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Look:
    """A file's content hash (SHA-256, hex), its header and its perceptual hash, 64 bits."""

    sha256: str
    header: Header | None
    perceptual: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A property of the files that tells of the class: the share of the doubt about it (entropy) that it takes away."""

    what: str
    explained: float


def look_at(paths: Sequence[Path]) -> list[Look]:
    """Every file read once."""
    with ThreadPoolExecutor(cores()) as threads:
        return list(threads.map(_look, paths))


def _look(path: Path) -> Look:
    try:
        content = path.read_bytes()
        return Look(hashlib.sha256(content).hexdigest(), header(content), perceptual_hash(load(content, GREY)))
    except (OSError, Rejected):
        return Look("", None, np.zeros(64, bool))


def perceptual_hash(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """64 bits of the low frequencies of an image `(32, 32, 3)`, whether each is above their median.

    Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1 (DCT based).
    """
    from scipy.fft import dctn

    grey = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    low = dctn(grey, norm="ortho")[:8, :8].ravel()
    bits: NDArray[np.bool_] = low > np.median(low[1:])
    return bits


def shortcuts(looks: Sequence[Look], labels: Labels, seed: int) -> list[Suspect]:
    """The properties of files by which the class can be told, each alone, on left-out files."""
    known = [index for index, look in enumerate(looks) if look.header is not None]
    if len(known) < 4 * FOLDS:
        return []
    headers = [each.header for each in looks if each.header is not None]
    properties = {
        "file format": [each.format for each in headers],
        "width and height": [f"{each.width} x {each.height}" for each in headers],
        "colour mode": [each.mode for each in headers],
        "EXIF": [each.exif for each in headers],
    }
    suspects = [_suspect(what, values, labels[known], seed) for what, values in properties.items()]
    return [suspect for suspect in suspects if suspect is not None]


def _suspect(what: str, values: Sequence[str], labels: Labels, seed: int) -> Suspect | None:
    """The suspect, if knowing the value of left-out files takes away enough of the doubt about their class.

    Each value's shares of the classes are drawn towards those of all files, as if by one more of it, so that a value
    seen once or never says nothing.
    """
    _, codes = np.unique(values, return_inverse=True)
    classes = int(labels.max()) + 1
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    before = after = 0.0
    for each in range(FOLDS):
        fitted, held = fold != each, fold == each
        prior = (np.bincount(labels[fitted], minlength=classes) + 1e-3) / (fitted.sum() + 1e-3 * classes)
        counts = np.zeros((int(codes.max()) + 1, classes))
        np.add.at(counts, (codes[fitted], labels[fitted]), 1)
        shares = (counts + prior) / (counts.sum(axis=1, keepdims=True) + 1.0)
        before -= float(np.log(prior[labels[held]]).sum())
        after -= float(np.log(shares[codes[held], labels[held]]).sum())
    explained = 1.0 - after / before if before > 0 else 0.0
    return Suspect(what, explained) if explained > EXPLAINED else None
