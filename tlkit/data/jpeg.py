"""Find JPEGs whose compressed data end before their last pixel.

libjpeg decodes what is missing as gray, and Pillow keeps its warnings to itself. A file that may be cut is decoded a
second time, with other bytes behind its data: if all pixels were there, nothing changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageChops

END = b"\xff\xd9"  # the end mark
MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # in compressed data neither stuffing nor RST
_START, _END, _START_OF_SCAN = 0xD8, END[1], 0xDA
_SEQUENTIAL, _ARITHMETIC = (0xC0, 0xC1), range(0xC9, 0xCC)  # markers of frames
# Read as data if some are missing, else skipped; with RST markers of each number, for data that ended at one.
_BEHIND = b"".join(bytes(range(254, 0, -1)) + bytes([0xFF, 0xD0 + number]) for number in range(8))
_UNWRITTEN = 16  # zeros at the end of a file are space that was never written; fewer may be data
_GRAY, _ROUNDING = 128, 1.5  # of missing pixels: all but their color, which is blurred over the border
_LUMA = {"L": (1,), "RGB": (0.299, 0.587, 0.114), "CMYK": (0, 0, 0, 1)}


@dataclass(frozen=True, slots=True)
class _Segments:
    """Facts that the marker segments tell: the end of the first image, and whether pixels may be missing."""

    end: int
    closed: bool  # by an end mark
    bits: int  # that no scan has added yet to the coefficients of the last one
    suspect: bool
    arithmetic: bool


class Jpeg:
    """The bytes of a JPEG file, which may be cut."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.usual = data.endswith(END) and _has_one_scan(data)

    @cached_property
    def _segments(self) -> _Segments:
        data, position, scans, low = self.data, 2, 0, 0
        suspect = arithmetic = False
        while (found := MARKER.search(data, position)) is not None:
            marker, position = found[1][0], found.end()
            if marker in (_START, _END):  # the start is that of another image
                return _Segments(found.start(), marker == _END, low, suspect, arithmetic)
            arithmetic |= marker in _ARITHMETIC
            position += int.from_bytes(data[position : position + 2], "big")
            if marker == _START_OF_SCAN:
                scans += 1
                high, low = divmod(data[position - 1] if position <= len(data) else 0, 16)
                # Without a last scan that adds the last bit of each coefficient, all rows are there.
                suspect = scans > 1 and (high == 0 or low > 0)
        written = data.rstrip(b"\0")
        end = len(written) if len(data) - len(written) >= _UNWRITTEN else len(data)
        return _Segments(end - data.endswith(b"\xff", 0, end), False, low, suspect, arithmetic)

    def complete(self) -> bytes:
        """Return the file with an end mark."""
        return self.data if self.usual or self._segments.closed else self.data[: self._segments.end] + END

    def extended(self) -> bytes:
        """Return the file with more data at its end."""
        return self.data[: self._segments.end] + _BEHIND + END

    def is_cut(self, decoded: Image.Image, extended: Image.Image) -> bool:
        """Return True if pixels are missing: scans are, or the extended file gives another image."""
        segments = self._segments
        if segments.arithmetic:  # which libjpeg decodes to the end of any data
            return not segments.closed
        missing = segments.bits > 0 and not segments.closed
        return missing or ImageChops.difference(decoded, extended).getbbox() is not None

    def may_be_cut(self, decoded: Image.Image) -> bool:
        """Return True unless the image that it was decoded to, perhaps at reduced scale, shows that it is complete."""
        if not self.usual and (self._segments.suspect or not self._segments.closed):
            return True
        corner = np.atleast_1d(np.asarray(decoded.getpixel((decoded.width - 1, decoded.height - 1)), np.float64))
        return abs(float(corner @ _LUMA[decoded.mode]) - _GRAY) <= _ROUNDING


def _has_one_scan(data: bytes) -> bool:
    """Return True for a frame without stages whose first scan has all components; reads the header alone."""
    position, components = 2, 0
    while (found := MARKER.search(data, position)) is not None and found.end() + 10 <= len(data):
        marker, position = found[1][0], found.end()
        if marker == _START_OF_SCAN:
            return components == data[position + 2]
        if marker in _SEQUENTIAL:
            components = data[position + 7]
        position += int.from_bytes(data[position : position + 2], "big")
    return False
