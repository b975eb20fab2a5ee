"""Memory of decoding: each picture is bounded in bytes, and the pictures that are decoded at once share the bound.

A file of 34 bytes may declare 16,383 x 16,383 pixels, and a decoder allocates them before it looks for any.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from tlkit.data.decoding import UnreadableImage
from tlkit.errors import UsageError
from tlkit.util.text import format_bytes

LIMIT_VARIABLE = "TLKIT_IMAGE_MEMORY"
LIMIT = 1.5  # GiB: 200 million pixels in RGB, 134 million with transparency, 67 to 100 million in WebP

_SMALL = 2**24  # bytes; pictures of less are not counted, as that would take longer than it is worth
_CHANNELS = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # bytes per pixel; 4 in others
_CONVERTED = {"1": 4, "L": 4, "RGB": 4, "I;16": 4, "I;16B": 4}  # bytes of copies per pixel; 8 in others
_CANVASES = 12  # bytes per pixel that libwebp's decoder of animations keeps, which Pillow uses for all WebP
_COEFFICIENTS = 6  # bytes per pixel of the whole of a progressive JPEG, at whatever scale it is decoded

_free = threading.Condition()
_taken = [0]  # bytes of the pictures that are being decoded


def limit() -> int:
    """Return the bytes that pictures may take while they are decoded. Raises UsageError."""
    given = os.environ.get(LIMIT_VARIABLE) or str(LIMIT)
    try:
        return round(float(given) * 2**30)
    except (ValueError, OverflowError) as error:
        what = f"{LIMIT_VARIABLE}={given} is not a number of GiB"
        raise UsageError(what, do=f"set it to one, such as {2 * LIMIT:g}") from error


def needed(image: Image.Image, size: tuple[int, int]) -> int:
    """Return the bytes that an image takes from its decoder to its last copy; `size` is its own, before a draft."""
    per_pixel = _CHANNELS.get(image.mode, 4) + _CONVERTED.get(image.mode, 8)
    per_pixel += _CANVASES if image.format == "WEBP" else 0
    coefficients = _COEFFICIENTS * size[0] * size[1] if image.info.get("progressive") else 0
    return image.width * image.height * per_pixel + coefficients


@contextmanager
def reserved(image: Image.Image, size: tuple[int, int]) -> Iterator[None]:
    """Wait until an image can be decoded beside the others. Raises UnreadableImage if it takes more than all may."""
    wanted = needed(image, size)
    if wanted < _SMALL:
        yield
        return
    if wanted > (most := limit()):
        what = f"{size[0]} x {size[1]} pixels take {format_bytes(wanted)} to decode, more than {format_bytes(most)}"
        raise UnreadableImage(f"{what}; scale it down, or set {LIMIT_VARIABLE} to more GiB")
    with _free:
        _free.wait_for(lambda: not _taken[0] or _taken[0] + wanted <= most)
        _taken[0] += wanted
    try:
        yield
    finally:
        with _free:
            _taken[0] -= wanted
            _free.notify_all()
