"""Memory of decoding: each picture is bounded in bytes, and the pictures that are decoded at once share the bound.

A file of 34 bytes may declare 16,383 x 16,383 pixels, and a decoder allocates them before it looks for any. Processes
that torchrun started on this machine share the bound as well: equally, and one at a time for what takes more than a
share.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from tlkit.data.decoding import UnreadableImage
from tlkit.errors import UsageError
from tlkit.util.files import cache_dir
from tlkit.util.temporaries import wait_for
from tlkit.util.text import format_bytes

LIMIT_VARIABLE = "TLKIT_IMAGE_MEMORY"
PROCESSES_VARIABLE = "LOCAL_WORLD_SIZE"  # set by torchrun: the number of its processes on this machine
LIMIT = 1.5  # GiB: 200 million pixels in RGB, 134 million with transparency, 67 to 100 million in WebP

_SMALL = 2**24  # bytes; pictures of less are not counted, as that would take longer than it is worth
_CHANNELS = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # bytes per pixel; 4 in others
_CONVERTED = {"1": 4, "L": 4, "RGB": 4, "I;16": 4, "I;16B": 4}  # bytes of copies per pixel; 8 in others
_CANVASES = 12  # bytes per pixel that libwebp's decoder of animations keeps, which Pillow uses for all WebP
_COEFFICIENTS = 6  # bytes per pixel of the whole of a progressive JPEG, at whatever scale it is decoded

_free = threading.Condition()
_taken = [0]  # bytes of the pictures that are being decoded
_lock: list[int] = []  # descriptor of the lock among processes, while this one decodes


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
    processes = _processes()
    share = most // processes
    with _free:
        _free.wait_for(lambda: not _taken[0] or _taken[0] + wanted <= share)
        if not _taken[0] and processes > 1:
            _acquire(alone=wanted > share)
        _taken[0] += wanted
    try:
        yield
    finally:
        with _free:
            _taken[0] -= wanted
            if not _taken[0] and _lock:
                os.close(_lock.pop())
            _free.notify_all()


def _processes() -> int:
    given = os.environ.get(PROCESSES_VARIABLE, "1")
    return max(1, int(given)) if given.isdecimal() else 1


def _acquire(*, alone: bool) -> None:
    """Wait until no other process decodes what takes more than its share; or, for such a picture, nothing at all."""
    _lock.append(os.open(cache_dir() / "decoding.lock", os.O_RDWR | os.O_CREAT, 0o666))
    wait_for(_lock[0], alone=alone)
