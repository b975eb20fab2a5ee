"""What the files of a set say without their content: which are the same, and whether they betray the class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tlkit.data.preprocessing import Header, Rejected, header, load
from tlkit.plugin.contract import Preprocessing
from tlkit.runtime.session import cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels = NDArray[np.int64]
    Shares = NDArray[np.float64]

SMALL = Preprocessing(32, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bilinear")
EXPLAINED = 0.15  # share of the doubt about the class that a property must take away to be a suspect
BETRAYED = 0.5  # the same of the doubt whether it is one certain class: among ten, knowing one of them explains little
FOLDS = 5
SHAPES = 63  # frequencies of a sketch


@dataclass(frozen=True, slots=True)
class Look:
    """A file's content hash (SHA-256, hex), its header, and what its picture looks like from afar (see `sketch`)."""

    sha256: str
    header: Header | None
    sketch: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A property of the files that tells of the class: the share of the doubt about it (entropy) that it takes away.

    `betrays` is the class that it tells from all others, where it does, and `certainty` the share of that doubt.
    """

    what: str
    explained: float
    betrays: str | None = None
    certainty: float = 0.0

    def line(self) -> str:
        """For a terminal."""
        more = "" if self.betrays is None else f", and {self.certainty:.0%} of that whether it is {self.betrays}"
        return f"{self.what} alone takes away {self.explained:.0%} of the doubt about the class{more}"


def look_at(paths: Sequence[Path]) -> list[Look]:
    """Every file read once."""
    with ThreadPoolExecutor(cores()) as threads:
        return list(threads.map(_look, paths))


def _look(path: Path) -> Look:
    try:
        content = path.read_bytes()
        return Look(hashlib.sha256(content).hexdigest(), header(content), sketch(load(content, SMALL)))
    except (OSError, Rejected):
        return Look("", None, np.zeros(SHAPES + 3, np.float32))


def sketch(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What is left of an image `(32, 32, 3)` from afar, `(SHAPES + 3,)`: its low frequencies, and its mean colour.

    The former are the amplitudes, in levels of grey, that a perceptual hash by DCT keeps one bit of each (Zauner,
    "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1).
    """
    from scipy.fft import dctn

    grey = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    low = dctn(grey, norm="ortho")[:8, :8].ravel()[1:] / len(grey)
    return np.concatenate([low, image.mean(axis=(0, 1))]).astype(np.float32)


def shortcuts(looks: Sequence[Look], labels: Labels, names: Sequence[str], seed: int) -> list[Suspect]:
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
    suspects = [_suspect(what, values, labels[known], names, seed) for what, values in properties.items()]
    return [suspect for suspect in suspects if suspect is not None]


def _suspect(what: str, values: Sequence[str], labels: Labels, names: Sequence[str], seed: int) -> Suspect | None:
    """The suspect, if knowing the value of left-out files takes away enough of the doubt about their class."""
    prior, shares = _left_out(values, labels, len(names), seed)
    own = np.arange(len(labels)), labels
    explained = _explained(prior[own], shares[own])
    certainty = np.zeros(len(names))
    for label, count in enumerate(np.bincount(labels, minlength=len(names))):
        if count >= 2 * FOLDS:
            of_it = (labels == label)[:, None] == [[False, True]]
            doubts = [np.stack([1 - each[:, label], each[:, label]], axis=1)[of_it] for each in (prior, shares)]
            certainty[label] = _explained(*doubts)
    betrayed = int(certainty.argmax())
    if certainty[betrayed] > BETRAYED:
        return Suspect(what, explained, names[betrayed], float(certainty[betrayed]))
    return Suspect(what, explained) if explained > EXPLAINED else None


def _explained(before: Shares, after: Shares) -> float:
    """The share of the doubt that is taken away where what is true had the probabilities `before` and has `after`."""
    doubt = -float(np.log(before).sum())
    return 1.0 + float(np.log(after).sum()) / doubt if doubt > 0 else 0.0


def _left_out(values: Sequence[str], labels: Labels, classes: int, seed: int) -> tuple[Shares, Shares]:
    """Probabilities `(N, classes)` by other files: without the value of a file's property, and knowing it.

    Each value's shares of the classes are drawn towards those of all files, as if by one more of it, so that a value
    seen once or never says nothing.
    """
    _, codes = np.unique(values, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    prior, shares = np.zeros((2, len(labels), classes))
    for each in range(FOLDS):
        fitted, held = fold != each, fold == each
        prior[held] = (np.bincount(labels[fitted], minlength=classes) + 1e-3) / (fitted.sum() + 1e-3 * classes)
        counts = np.zeros((int(codes.max()) + 1, classes))
        np.add.at(counts, (codes[fitted], labels[fitted]), 1)
        known = counts[codes[held]]
        shares[held] = (known + prior[held]) / (known.sum(axis=1, keepdims=True) + 1.0)
    return prior, shares
