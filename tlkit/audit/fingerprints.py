"""Fingerprints of image files: content hash, header, and a sketch that survives re-encoding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlkit.data.decoding import Header, UnreadableImage, header, read_file
from tlkit.data.preprocessing import load
from tlkit.plugin.contract import Preprocessing
from tlkit.util.resources import cores

SMALL = Preprocessing(32, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bilinear")
FREQUENCIES = 63  # of a sketch


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A file's SHA-256 (hex, empty if it is unreadable), its header, and the sketch of its image."""

    sha256: str
    header: Header | None
    sketch: NDArray[np.float32]


def fingerprints(paths: Sequence[Path]) -> list[Fingerprint]:
    """Return the fingerprint of each file, which is read once."""
    with ThreadPoolExecutor(cores()) as threads:
        return list(threads.map(_fingerprint, paths))


def _fingerprint(path: Path) -> Fingerprint:
    try:
        content = read_file(path)
        return Fingerprint(hashlib.sha256(content).hexdigest(), header(content), sketch(load(content, SMALL)))
    except UnreadableImage:
        return Fingerprint("", None, np.zeros(FREQUENCIES + 3, np.float32))


def sketch(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the low frequencies and the mean color `(FREQUENCIES + 3,)` of an image `(32, 32, 3)`.

    The frequencies are the amplitudes, in levels of gray, of which a perceptual hash by DCT keeps one bit each (Zauner,
    "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1).
    """
    from scipy.fft import dctn

    gray = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    low = dctn(gray, norm="ortho")[:8, :8].ravel()[1:] / len(gray)
    return np.concatenate([low, image.mean(axis=(0, 1))]).astype(np.float32)
