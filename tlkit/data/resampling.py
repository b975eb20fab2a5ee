"""Rows of bytes from which a device makes what `tlkit.data.preprocessing.load` returns, bit for bit.

Pillow resamples 8-bit images with integers (libImaging/Resample.c): each pixel is a sum of neighbors with weights of
22 bits, along one axis and then the other, rounded after each. A row has the pixels that count, and those weights.
Pillow computes the weights itself: it resizes images of 32-bit integers with the same ones, so an image that is 2^22 at
some pixels, and else 0, becomes the weights of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from tlkit.data.decoding import exif_transpose, flatten
from tlkit.data.preprocessing import Decoded, Size, Source, crop_box, decoded, render
from tlkit.plugin.contract import Preprocessing

BITS = 22  # of a weight's fraction
TALL_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
SUPPORT = {"bilinear": 1, "hamming": 1, "bicubic": 2, "lanczos": 3}  # pixels on one side of a sample


@dataclass(frozen=True, slots=True)
class Layout:
    """The bytes of a row: uint8 `(side, side, 3)`, and int32 `(2, 2 * size, taps + 4)` for the columns and the rows.

    The image lies at the top left of the square; what is around it counts for nothing.
    """

    size: int
    interpolation: str
    side: int
    taps: int  # weights of a pixel, more than Pillow uses for any image that fits into the square
    pixels: int  # bytes of the square
    length: int  # bytes of a row


class _Axis(NamedTuple):
    first: int  # of the pixels that count, along an axis
    last: int  # after these
    table: NDArray[np.int32]


def is_known(preprocessing: Preprocessing) -> bool:
    """Return True if there are rows for a preprocessing."""
    return preprocessing.crop_mode != "border" and preprocessing.interpolation in SUPPORT


def layout(preprocessing: Preprocessing) -> Layout:
    """Return the layout of rows for a preprocessing; images of up to twice the size fit, with their neighbors."""
    size, interpolation = preprocessing.size, preprocessing.interpolation
    side = 2 * size + 16
    taps = 2 * math.ceil(SUPPORT[interpolation] * side / size) + 3
    pixels = 3 * side**2
    return Layout(size, interpolation, side, taps, pixels, pixels + 4 * 2 * 2 * size * (taps + 4))


def pack(source: Source, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the row of an image, or of its result where that is simpler. Raises what `load` raises."""
    its = layout(preprocessing)
    with decoded(source, preprocessing) as found:
        packed = _fitting(found, preprocessing, its)
        if packed is None:
            axis = _axis(its, its.size, 0, its.size)
            packed = render(found, preprocessing), axis, axis, False
    pixels, x, y, turned = packed
    row = np.empty(its.length, np.uint8)
    row[: its.pixels].reshape(its.side, its.side, 3)[: len(pixels), : pixels.shape[1]] = pixels
    tables = row[its.pixels :].view(np.int32).reshape(2, *x.table.shape)
    tables[0], tables[1], tables[0, 0, 0] = x.table, y.table, turned
    return row


def _fitting(
    found: Decoded, preprocessing: Preprocessing, its: Layout
) -> tuple[NDArray[np.uint8], _Axis, _Axis, bool] | None:
    """Return the pixels that count, what resamples them along both axes, and whether to transpose the result.

    Of an image that is too large, as most are that their EXIF turns, it is None.
    """
    image, _, extent = found
    flat = flatten(image)
    left, top, right, bottom = crop_box(extent or flat.size, preprocessing, None)
    if max(right - left, bottom - top) > its.side or exif_transpose(image) is not None:
        return None
    x, y = _axis(its, flat.width, left, right), _axis(its, flat.height, top, bottom)
    if max(x.last - x.first, y.last - y.first) > its.side:
        return None
    part = flat.crop((x.first, y.first, x.last, y.last)).convert("RGB")
    if is_tall(flat.size, its.size):
        return np.asarray(part.transpose(Image.Transpose.TRANSPOSE)), y, x, True
    return np.asarray(part), x, y, False


def is_tall(size: Size, side: int) -> bool:
    """Return True if Pillow resamples an image along its columns first, whatever the box: they shrink far more."""
    return TALL_FIRST and size[1] > side and size[1] - side > 2 * (size[0] - side)


@lru_cache(1024)
def _axis(its: Layout, length: int, start: float, end: float) -> _Axis:
    """Return what resamples the part from `start` to `end` of an axis with so many pixels.

    For each pixel of the result the table has a place for a mark, the number before that of its first neighbor, 0, the
    weights of the neighbors from there on, and 0; weights without their low 11 bits for all pixels, then these bits.
    """
    count, scale = np.arange(its.size), (end - start) / its.size
    reach = SUPPORT[its.interpolation] * max(scale, 1.0)
    begin = np.floor(start + (count + 0.5) * scale - reach).astype(int) - 1  # it may be rounded, so one more
    combs = np.zeros((its.taps, length), np.int32)
    combs[np.arange(length) % its.taps, np.arange(length)] = 1 << BITS
    resampling = Image.Resampling[its.interpolation.upper()]
    found = np.asarray(Image.fromarray(combs).resize((its.size, its.taps), resampling, (start, 0, end, its.taps)))
    weights = found[(begin[:, None] + np.arange(its.taps)) % its.taps, count[:, None]]
    first, last = max(0, int(begin[0])), min(length, int(begin[-1]) + its.taps)
    high = (weights + 1024) >> 11
    table = np.zeros((2, its.size, its.taps + 4), np.int32)
    table[:, :, 1] = begin - first - 1
    table[:, :, 3:-1] = high, weights - (high << 11)
    return _Axis(first, last, np.concatenate(table))
