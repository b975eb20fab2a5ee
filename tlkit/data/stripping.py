"""Image files without what is not needed to decode them: EXIF with place and camera, comments, thumbnails, profiles.

The pixels stay as they are. Of EXIF only the orientation is kept, where it turns the image.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO

from PIL import ExifTags

from tlkit.data.decoding import HEAD, PNG, decoding, exif_transpose, flatten, format_of, open_image, png_chunks
from tlkit.data.jpeg import MARKER, Jpeg
from tlkit.data.memory import reserved

_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_WEBP_CHUNKS = frozenset({b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"})
_WEBP_HEADER, _WEBP_EXIF = b"VP8X", 0x08
_WEBP_FLAGS = 0x12  # transparency and animation: the flags of what is kept

# Markers of JPEG (ITU T.81, table B.1). The segment of Adobe says how the colors are stored.
_START, _ADOBE, _EXIF, _COMMENT, _SCAN, _END = 0xD8, 0xEE, 0xE1, 0xFE, 0xDA, 0xD9
_APPLICATION = range(0xE0, 0xF0)


def without_metadata(data: bytes) -> Iterator[bytes]:
    """Yield files of the same image without metadata, the one that is most like the original first.

    A JPEG, PNG or WebP keeps its coded pixels; the other is a PNG, upright. Whether either gives the same pixels is for
    the caller to check. Raises `UnreadableImage`.
    """
    with decoding():
        data = Jpeg(data).complete() if format_of(data[:HEAD]) == "JPEG" else data
        image = open_image(data)
        turn = exif_transpose(image)
        exif = b"" if turn is None else _exif(image.getexif()[ExifTags.Base.Orientation])
        strip = {"JPEG": _jpeg, "MPO": _jpeg, "PNG": _png, "WEBP": _webp}.get(image.format or "")
    if strip is not None:
        with suppress(ValueError, IndexError):  # of a file that Pillow puts up with
            yield strip(data, exif)
    with decoding(), reserved(image, image.size):
        image.load()
        turn = exif_transpose(image)
        flat = flatten(image)
        written = BytesIO()
        (flat if turn is None else flat.transpose(turn)).save(written, "PNG", icc_profile=None)
    yield written.getvalue()


def _exif(orientation: int) -> bytes:
    """Return EXIF, as a TIFF with one directory (EXIF 2.3, 4.6), that holds an orientation."""
    entry = struct.pack("<HHIHH", ExifTags.Base.Orientation, 3, 1, orientation, 0)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def _jpeg(data: bytes, exif: bytes) -> bytes:
    kept = [data[:2]]
    if exif:
        content = b"Exif\0\0" + exif
        kept.append(bytes([0xFF, _EXIF]) + struct.pack(">H", 2 + len(content)) + content)
    position = 2
    while position + 4 <= len(data):
        marker, end = data[position + 1], position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position] != 0xFF:
            raise ValueError("a marker is missing")
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == _END:
            break
        if marker == _SCAN:
            found = MARKER.search(data, end)
            end = len(data) if found is None else found.start()
        if (marker not in _APPLICATION and marker != _COMMENT) or marker == _ADOBE:
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, bytes([0xFF, _END])])


def _png(data: bytes, exif: bytes) -> bytes:
    kept = [PNG]
    for name, chunk in png_chunks(data):
        if name in _PNG_CHUNKS:
            kept.append(chunk)
        if name == b"IHDR" and exif:
            added = b"eXIf" + exif
            kept.append(struct.pack(">I", len(exif)) + added + struct.pack(">I", zlib.crc32(added)))
    return b"".join(kept)


def _webp(data: bytes, exif: bytes) -> bytes:
    kept, position = [b"WEBP"], 12
    while position + 8 <= len(data):
        name, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        end = position + 8 + size + size % 2
        if name in _WEBP_CHUNKS:
            kept.append(data[position:end])
        elif name == _WEBP_HEADER:
            flags = data[position + 8] & _WEBP_FLAGS | (_WEBP_EXIF if exif else 0)
            kept.append(data[position : position + 8] + bytes([flags]) + data[position + 9 : end])
        position = end
    if exif:
        kept.append(b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2))
    content = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(content)) + content
