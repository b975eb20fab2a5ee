"""Files as cameras, scanners and programs write them, and what is wrong beside the pixels."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tlkit.data.decoding import UnreadableImage, header
from tlkit.data.preprocessing import load
from tlkit.data.stripping import without_metadata
from tlkit.plugin.contract import Preprocessing

WANTED = Preprocessing(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def encoded(format: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes, *, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)


def long_text() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "x" * 2_000_000, zip=True)
    return encoded("PNG", pnginfo=text)


PNG = encoded("PNG")
BESIDE = {
    "a long text": long_text(),
    "a large profile": encoded("PNG", icc_profile=bytes(2_000_000)),
    "a wrong checksum in a text": PNG[:33] + chunk(b"tEXt", b"a\0b", wrong=1) + PNG[33:],
    "a wrong checksum of the orientation": PNG[:33] + chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", wrong=1) + PNG[33:],
    "a wrong checksum behind the pixels": PNG[:-12] + chunk(b"tEXt", b"a\0b", wrong=1) + PNG[-12:],
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_is_beside_the_pixels_of_a_png_damages_none(what: str) -> None:
    assert np.array_equal(load(BESIDE[what], WANTED), PIXELS)
    assert (header(BESIDE[what]).width, header(BESIDE[what]).mode) == (8, "RGB")
    assert np.array_equal(load(next(without_metadata(BESIDE[what])), WANTED), PIXELS)


def test_damaged_pixels_stay_damaged() -> None:
    text = chunk(b"tEXt", b"a\0b", wrong=1)
    with pytest.raises(UnreadableImage):
        load(PNG[:33] + text + PNG[33:60] + bytes(4) + PNG[64:], WANTED)
    with pytest.raises(UnreadableImage):
        load(PNG[:33] + text + PNG[33:80], WANTED)


@pytest.mark.parametrize(("alpha", "opaque"), [(0, True), (255, True), (128, False)])
def test_the_unused_byte_of_a_bitmap_is_not_transparency(alpha: int, opaque: bool) -> None:
    bgra = np.dstack([PIXELS[::-1, :, ::-1], np.full((8, 8), alpha, np.uint8)]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    header = struct.pack("<IiiHHIIiiII", 108, 8, 8, 1, 32, 3, len(bgra), 2835, 2835, 0, 0) + masks
    file = b"BM" + struct.pack("<IHHI", 14 + 108 + len(bgra), 0, 0, 14 + 108) + header + bgra
    assert np.array_equal(load(file, WANTED), PIXELS) == opaque


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_fewer_bits_in_sixteen_are_not_black(bits: int) -> None:
    levels = np.linspace(0, (1 << bits) - 1, 64).astype(np.uint16).reshape(8, 8)
    gray = load(encoded("PNG", Image.fromarray(levels)), WANTED)
    assert np.abs(gray[..., 0].astype(float) - np.linspace(0, 255, 64).reshape(8, 8)).max() < 1.0


def test_the_thumbnail_in_front_of_a_tiff_is_passed_over() -> None:
    small = Image.fromarray(PIXELS).resize((2, 2))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    file = encoded("TIFF", small, save_all=True, append_images=[Image.fromarray(PIXELS)], tiffinfo={254: 1})
    pages = Image.open(BytesIO(file))
    assert pages.tag_v2[254] == 1
    pages.seek(1)
    if pages.tag_v2.get(254, 0):  # this version of Pillow marks every page
        file = file[:8] + file[8:].replace(struct.pack("<HHII", 254, 4, 1, 1), struct.pack("<HHII", 254, 4, 1, 0))
        file = file.replace(struct.pack("<HHII", 254, 4, 1, 0), struct.pack("<HHII", 254, 4, 1, 1), 1)
    assert np.array_equal(load(file, WANTED), PIXELS)


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"ftypavif", "AVIF"), (b"ftypheic", "HEIC"), (b"ftypmif1", "HEIF"), (b"JXL \r\n\x87\n", "JPEG XL")],
)
def test_other_formats_are_named(head: bytes, name: str) -> None:
    with pytest.raises(UnreadableImage, match=f"is {name}, which is not decoded; save it as JPEG or PNG"):
        load(bytes(3) + b"\x20" + head + bytes(40), WANTED)
