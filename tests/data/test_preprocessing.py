"""The one way from a file to pixels: its geometry, its colors, and what it refuses."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps, JpegImagePlugin, TiffImagePlugin

from tlkit.data import decoding, memory
from tlkit.data.augmentation import View, random_view
from tlkit.data.dataset import find_images
from tlkit.data.decoding import UnreadableImage
from tlkit.data.preprocessing import load
from tlkit.errors import DataError, UsageError
from tlkit.plugin.contract import CROP_MODES, INTERPOLATIONS, Preprocessing

Array = NDArray[np.uint8]
SMOOTH = [name for name in INTERPOLATIONS if name not in ("nearest", "box")]
STEPPED = ["nearest", "box"]

REFUSED_BY_OLD_PILLOW = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 reads no such TIFF, so it is refused"
)


def params(size: int = 16, crop: float = 1.0, filter: str = "bilinear", mode: str = "center") -> Preprocessing:
    return Preprocessing(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop, mode, filter)


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


@cache
def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Something with the spectrum of a photograph: detail at every scale, most of it coarse, and a little noise."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0)
    for cells, strength in ((3, 50), (12, 25), (48, 12), (192, 6)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        fine = coarse.resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(fine, np.float64) - 128) / 128 * strength
    return Image.fromarray(np.clip(total + rng.normal(0, 3, total.shape), 0, 255).astype(np.uint8))


def patches() -> Array:
    """(8, 8, 3): four flat quadrants of strong colors, so that mixed-up channels, axes or palettes show."""
    colors = np.array([[[200, 30, 60], [20, 180, 90]], [[40, 70, 220], [240, 230, 40]]], np.uint8)
    return colors.repeat(4, axis=0).repeat(4, axis=1)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    values: NDArray[Any], depth: int, kind: int, *, before: bytes = b"", after: bytes = b"", claim: int = 0
) -> bytes:
    """A PNG as Pillow writes none: `values` (H, W, ...), chunks around the pixels, a header that claims claim^2."""
    height, width = values.shape[:2]
    rows = values.astype(">u2" if depth == 16 else ">u1").reshape(height, -1)
    header = struct.pack(">IIBBBBB", claim or width, claim or height, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def difference(one: Array, other: Array) -> NDArray[np.int64]:
    return np.abs(one.astype(np.int64) - other.astype(np.int64))


def oriented(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


# --- the result and its geometry ---


def test_result_is_uint8_rgb_contiguous_and_writable() -> None:
    array = load(encoded(photo(30, 20), "JPEG"), params(16))
    assert (array.dtype, array.shape) == (np.dtype(np.uint8), (16, 16, 3))
    assert array.flags.c_contiguous
    assert array.flags.writeable


def test_path_and_bytes_give_the_same_array(tmp_path: Path) -> None:
    data = encoded(photo(60, 40), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    assert np.array_equal(load(tmp_path / "a.jpg", params()), load(data, params()))


def test_the_content_decides_the_format_not_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(patches()), "PNG"))
    assert np.array_equal(load(tmp_path / "a.jpg", params(8)), patches())


@pytest.mark.parametrize("filter", INTERPOLATIONS)
def test_size_of_the_picture_and_whole_crop_change_nothing(filter: str) -> None:
    picture = photo(32, 32)
    assert np.array_equal(load(encoded(picture, "PNG"), params(32, 1.0, filter)), np.asarray(picture))


@pytest.mark.parametrize(("width", "height"), [(20, 12), (12, 20), (12, 12)])
def test_the_square_is_centered_and_crop_times_the_shorter_side(width: int, height: int) -> None:
    picture = photo(width, height)
    left, top = (width - 6) // 2, (height - 6) // 2
    expected = np.asarray(picture)[top : top + 6, left : left + 6]
    assert np.array_equal(load(encoded(picture, "PNG"), params(6, 0.5, "nearest")), expected)


def test_the_square_may_lie_between_pixels() -> None:
    ramp = np.repeat(np.arange(0, 110, 10, np.uint8)[None, :, None], 4, 0).repeat(3, 2)  # 11 x 4 pixels
    # The square spans columns 3.5 to 7.5: bilinear samples in the middle between neighbors.
    assert load(encoded(Image.fromarray(ramp), "PNG"), params(4))[0, :, 0].tolist() == [35, 45, 55, 65]


def test_box_filter_is_the_mean_of_blocks() -> None:
    picture = photo(64, 64)
    means = np.asarray(picture, np.float64).reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(load(encoded(picture, "PNG"), params(16, 1.0, "box")) - means).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
@pytest.mark.parametrize("crop", [0.01, 0.875, 1.0])
def test_tiny_and_extreme_pictures_keep_at_least_a_pixel(size: tuple[int, int], crop: float) -> None:
    array = load(encoded(Image.new("RGB", size, (9, 8, 7)), "PNG"), params(5, crop, "bicubic"))
    assert (array == (9, 8, 7)).all()


def test_the_square_is_at_least_a_pixel() -> None:
    data = encoded(photo(10, 30), "PNG")
    assert np.array_equal(load(data, params(4, 0.001)), load(data, params(4, 0.1)))
    assert not np.array_equal(load(data, params(4, 0.1)), load(data, params(4, 0.11)))


@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.floats(0.01, 1), st.sampled_from(INTERPOLATIONS),
    st.sampled_from(["JPEG", "PNG", "GIF"]),
)  # fmt: skip
def test_any_size_crop_and_filter_keep_a_flat_color(
    width: int, height: int, size: int, crop: float, filter: str, format: str
) -> None:
    data = encoded(Image.new("RGB", (width, height), (200, 100, 50)), format)
    array = load(data, params(size, crop, filter))
    assert array.shape == (size, size, 3)
    assert difference(array, np.array([200, 100, 50], np.uint8)).max() <= 2  # JPEG's color rounding


# --- squashed, and with a border ---


@pytest.mark.parametrize(("width", "height"), [(24, 12), (12, 36)])
@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_squash_resizes_each_side_by_itself(width: int, height: int, crop: float) -> None:
    picture = photo(width, height)
    box = (width * (1 - crop) / 2, height * (1 - crop) / 2, width * (1 + crop) / 2, height * (1 + crop) / 2)
    expected = np.asarray(picture.resize((6, 6), Image.Resampling.BILINEAR, box=box))
    assert np.array_equal(load(encoded(picture, "PNG"), params(6, crop, mode="squash")), expected)


def test_border_keeps_the_ratio_and_all_of_the_picture() -> None:
    picture = photo(20, 12)
    wanted = Preprocessing(10, (0.2, 0.4, 0.6), (0.5, 0.5, 0.5), 1.0, "border", "bilinear")
    array = load(encoded(picture, "PNG"), wanted)
    assert np.array_equal(array[2:8], np.asarray(picture.resize((10, 6), Image.Resampling.BILINEAR)))
    assert (array[[0, 1, 8, 9]] == (51, 102, 153)).all()
    upright = load(encoded(picture.transpose(Image.Transpose.ROTATE_90), "PNG"), wanted)
    assert (upright[:, [0, 1, 8, 9]] == (51, 102, 153)).all()


def test_a_border_is_cropped_with_the_picture() -> None:
    array = load(encoded(photo(20, 12), "PNG"), params(10, 0.5, "nearest", "border"))
    assert np.array_equal(array, np.asarray(photo(20, 12))[1:11, 5:15])  # 10 of 20 x 20: no border is left


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.floats(0.01, 1), st.sampled_from(CROP_MODES),
       st.one_of(st.none(), st.builds(random_view, st.just(0), st.just(1), st.integers(0, 99))))  # fmt: skip
def test_a_flat_color_stays_and_the_rest_is_border(
    width: int, height: int, size: int, crop: float, mode: str, view: View | None
) -> None:
    picture = Image.new("RGB", (width, height), (200, 100, 50))
    array = load(picture, params(size, crop, "bicubic", mode), view=view)
    assert array.shape == (size, size, 3)
    inside = (array == (200, 100, 50)).all(2)
    assert (inside | (array == 128).all(2)).all()
    assert inside.all() if mode != "border" else inside[(size - 1) // 2, (size - 1) // 2]


def test_a_view_has_the_shape_of_what_is_deployed() -> None:
    wide = Image.new("RGB", (90, 30), (200, 100, 50))
    view = View(0.5, 1.0, 0.5, 0.5, mirrored=False)
    bordered = load(wide, params(30, mode="border"), view=view)
    assert ((bordered == 128).all((1, 2)).sum(), (bordered == 128).all((0, 2)).sum()) == (20, 0)
    slope = Image.fromarray(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None].repeat(30, 0).repeat(3, 2))
    squashed, cropped = (load(slope, params(30, mode=mode), view=view)[0, :, 0] for mode in ("squash", "center"))
    assert np.ptp(squashed) > 170  # half of the area, as wide as it is high in the square
    assert np.ptp(cropped) < 110  # a square part of a wide picture


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("mode", ["squash", "border"])
def test_orientation_equals_turning_first_in_every_mode(value: int, mode: str) -> None:
    turned = encoded(photo(61, 43), "PNG", exif=oriented(value))
    upright = encoded(ImageOps.exif_transpose(Image.open(BytesIO(turned))), "BMP")
    wanted = params(20, 0.9, mode=mode)
    assert difference(load(turned, wanted), load(upright, wanted)).max() <= 1


@pytest.mark.parametrize(("mode", "decoded"), [("squash", (320, 160)), ("border", (320, 160)), ("center", (640, 320))])
def test_a_large_jpeg_is_decoded_for_the_pixels_that_a_mode_needs(
    mode: str, decoded: tuple[int, int], drafts: list[tuple[int, int]]
) -> None:
    jpeg = encoded(photo(1280, 640), "JPEG", quality=90)
    full = encoded(Image.open(BytesIO(jpeg)), "BMP")
    drafts.clear()
    size = {"squash": 80, "border": 160, "center": 160}[mode]
    apart = difference(load(jpeg, params(size, mode=mode)), load(full, params(size, mode=mode)))
    assert drafts[0] == decoded
    assert apart.mean() < 0.6


# --- reduced decoding of large JPEGs ---


@pytest.fixture
def drafts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes that JPEGs were decoded at."""
    sizes: list[tuple[int, int]] = []
    plain = JpegImagePlugin.JpegImageFile.load_prepare

    def spy(picture: JpegImagePlugin.JpegImageFile) -> None:
        sizes.append(picture.size)
        plain(picture)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load_prepare", spy)
    return sizes


@pytest.mark.parametrize(
    ("size", "crop", "decoded"),
    [
        ((639, 700), 1.0, (639, 700)),  # 2 x 160 pixels would not be left at half scale
        ((640, 700), 1.0, (320, 350)),
        ((640, 700), 0.99, (640, 700)),
        ((1281, 1403), 1.0, (321, 351)),  # rounded up
        ((2560, 2570), 1.0, (320, 322)),
    ],
)
def test_a_large_jpeg_is_decoded_with_twice_the_pixels_to_spare(
    size: tuple[int, int], crop: float, decoded: tuple[int, int], drafts: list[tuple[int, int]]
) -> None:
    load(encoded(Image.new("RGB", size), "JPEG"), params(160, crop))
    assert drafts[0] == decoded


@pytest.mark.parametrize("filter", STEPPED)
def test_filters_that_pick_pixels_get_the_full_decode(filter: str, drafts: list[tuple[int, int]]) -> None:
    load(encoded(Image.new("RGB", (640, 640)), "JPEG"), params(16, 1.0, filter))
    assert drafts[0] == (640, 640)


@pytest.mark.parametrize("filter", SMOOTH)
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}], ids=["420", "444", "progressive"])
@pytest.mark.parametrize(("width", "height"), [(907, 1203), (1613, 1009)])
def test_reduced_decoding_is_faithful(
    filter: str, options: dict[str, Any], width: int, height: int, drafts: list[tuple[int, int]]
) -> None:
    jpeg = encoded(photo(width, height), "JPEG", quality=90, **options)
    full = encoded(Image.open(BytesIO(jpeg)), "BMP")
    drafts.clear()
    apart = difference(load(jpeg, params(100, 0.875, filter)), load(full, params(100, 0.875, filter)))
    assert drafts[0][0] < width  # else there was nothing to compare
    assert apart.mean() < 0.6
    assert apart.max() <= 5


def test_reduced_decoding_is_faithful_to_real_photographs(shared_data: Path, drafts: list[tuple[int, int]]) -> None:
    large = [path for path in find_images([shared_data / "ants_bees"]).files if min(Image.open(path).size) >= 1024]
    assert len(large) >= 2
    for path in large:
        size, full = Image.open(path).size, encoded(Image.open(path), "BMP")
        drafts.clear()
        apart = difference(load(path, params(224, 0.875, "bicubic")), load(full, params(224, 0.875, "bicubic")))
        assert drafts[0][0] < size[0]
        assert apart.mean() < 0.5
        assert np.quantile(apart, 0.999) <= 4


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_reduced_decoding_keeps_colors_of_other_modes(mode: str, drafts: list[tuple[int, int]]) -> None:
    flat = Image.new("RGB", (803, 605), (180, 90, 40)).convert(mode)
    array = load(encoded(flat, "JPEG", quality=95), params(32))
    assert drafts[0] == (101, 76)
    assert difference(array, np.asarray(flat.convert("RGB"))[0, 0]).max() <= 2


# --- orientation ---


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("filter", INTERPOLATIONS)
@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_orientation_equals_turning_first(value: int, filter: str, format: str, options: dict[str, Any]) -> None:
    turned = encoded(photo(61, 43), format, exif=oriented(value), **options)
    upright = encoded(ImageOps.exif_transpose(Image.open(BytesIO(turned))), "BMP")
    apart = difference(load(turned, params(20, 0.9, filter)), load(upright, params(20, 0.9, filter)))
    assert apart.max() <= (1 if filter in SMOOTH else 0)


@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_of_a_jpeg_decoded_at_reduced_scale(value: int, drafts: list[tuple[int, int]]) -> None:
    turned = encoded(photo(803, 605), "JPEG", quality=95, exif=oriented(value))
    upright = encoded(ImageOps.exif_transpose(Image.open(BytesIO(turned))), "BMP")
    drafts.clear()
    apart = difference(load(turned, params(50)), load(upright, params(50)))
    assert drafts[0] == (201, 152)
    assert apart.mean() < 0.6
    assert apart.max() <= 5


def test_orientation_is_found_behind_the_pixels_of_a_png() -> None:
    array = load(png(patches(), 8, 2, after=chunk(b"eXIf", oriented(3)[6:])), params(8))
    assert np.array_equal(array, patches()[::-1, ::-1])


@pytest.mark.parametrize("value", [0, 9, 4711])
def test_unknown_orientation_is_no_orientation(value: int) -> None:
    assert np.array_equal(load(encoded(Image.fromarray(patches()), "PNG", exif=oriented(value)), params(8)), patches())


BROKEN_EXIF = {
    "garbage": b"Exif\0\0" + b"\xff" * 20,
    "cut": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01",
    "empty": b"Exif\0\0",
    "too long": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0\xff\xff\xff\x0f\x00\x00\x00\x7f\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # pytest puts its own filters before ours
@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_break_the_load(format: str, exif: bytes) -> None:
    picture = Image.fromarray(patches().repeat(4, 0).repeat(4, 1))
    assert np.array_equal(
        load(encoded(picture, format, exif=exif), params(8)), load(encoded(picture, format), params(8))
    )


# --- colors ---


def on_white(color: Array, alpha: Array) -> NDArray[np.float64]:
    share = alpha[..., None] / 255
    return color * share + 255 * (1 - share)


ALPHA = np.tile(np.array([0, 64, 128, 255], np.uint8), (8, 2))
RGBA = np.dstack([patches(), ALPHA])
GREY = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)


def grey_rgb(grey: NDArray[Any]) -> Array:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, 2)


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_rgb_is_kept(format: str, options: dict[str, Any]) -> None:
    assert np.array_equal(load(encoded(Image.fromarray(patches()), format, **options), params(8)), patches())


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF"])
def test_grey_is_kept(format: str) -> None:
    assert np.array_equal(load(encoded(Image.fromarray(GREY), format), params(8)), grey_rgb(GREY))


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF"])
def test_one_bit_is_black_and_white(format: str) -> None:
    bits = Image.fromarray(GREY).convert("1")
    expected = grey_rgb(np.asarray(bits) * 255)
    assert {0, 255} == set(np.unique(expected))
    assert np.array_equal(load(encoded(bits, format), params(8)), expected)


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF"])
def test_palette_becomes_colors_before_resampling(format: str) -> None:
    colors = Image.fromarray(patches()).quantize(4)
    data = encoded(colors, format)
    assert Image.open(BytesIO(data)).mode == "P"
    assert np.array_equal(load(data, params(8)), patches())
    mean = load(data, params(1, 1.0, "box"))[0, 0]  # the mean of colors, not the color of a mean index
    assert np.abs(mean - patches().mean((0, 1))).max() <= 1


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\x80"], ids=["index", "alphas"])
def test_transparent_palette_is_seen_on_white(transparency: int | bytes) -> None:
    picture = Image.new("P", (6, 6))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    indices = np.tile(np.array([0, 1, 2], np.uint8), (6, 2))
    picture.putdata(indices.reshape(-1).tolist())
    array = load(encoded(picture, "PNG", transparency=transparency), params(6))
    opacity = np.array([255, 0, 255 if transparency == 1 else 128], np.uint8)
    expected = on_white(np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8), opacity)[indices]
    assert np.abs(array - expected).max() <= 1


def test_transparent_gif_is_seen_on_white() -> None:
    picture = Image.new("P", (6, 6), 1)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    assert (load(encoded(picture, "GIF", transparency=1), params(6)) == 255).all()


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})]
)
def test_alpha_is_seen_on_white(format: str, options: dict[str, Any]) -> None:
    array = load(encoded(Image.fromarray(RGBA), format, **options), params(8))
    assert np.abs(array - on_white(patches(), ALPHA)).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey_with_alpha_is_seen_on_white(format: str) -> None:
    array = load(encoded(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), format), params(8))
    assert np.abs(array - on_white(grey_rgb(GREY), ALPHA)).max() <= 1


@REFUSED_BY_OLD_PILLOW
def test_multiplied_alpha_of_a_tiff_is_seen_on_white() -> None:
    half = Image.new("LA", (8, 8), (100, 128))
    data = encoded(half, "TIFF").replace(struct.pack("<HHII", 338, 3, 1, 2), struct.pack("<HHII", 338, 3, 1, 1))
    assert Image.open(BytesIO(data)).mode == "La"
    assert np.abs(load(data, params(8)).astype(int) - (100 + 127)).max() <= 2  # 100 is multiplied already


def test_what_lies_under_full_transparency_does_not_bleed() -> None:
    colors = np.zeros((8, 8, 4), np.uint8)  # black, invisible
    colors[:, :4] = (200, 100, 50, 255)
    assert np.array_equal(load(encoded(Image.fromarray(colors), "PNG"), params(2, 1.0, "box"))[:, 1], [[255] * 3] * 2)


def test_a_transparent_color_or_grey_is_seen_on_white() -> None:
    color = load(png(patches(), 8, 2, before=chunk(b"tRNS", struct.pack(">3H", 20, 180, 90))), params(8))
    assert np.array_equal(color[:4, 4:], np.full((4, 4, 3), 255))
    assert np.array_equal(color[4:], patches()[4:])
    grey = load(png(GREY, 8, 0, before=chunk(b"tRNS", struct.pack(">H", int(GREY[0, 0])))), params(8))
    assert (grey[0, 0] == 255).all()
    assert np.array_equal(grey[1:], grey_rgb(GREY)[1:])


WIDE = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


@pytest.mark.parametrize(
    "data",
    [
        png(WIDE, 16, 0),
        encoded(Image.fromarray(WIDE), "TIFF"),
        encoded(Image.fromarray(WIDE), "TIFF", compression="tiff_lzw"),
        encoded(Image.frombytes("I;16B", (8, 8), WIDE.astype(">u2").tobytes()), "TIFF"),
    ],
    ids=["png", "tiff", "tiff lzw", "tiff big-endian"],
)
def test_16_bit_grey_is_scaled_not_clipped(data: bytes) -> None:
    assert Image.open(BytesIO(data)).mode.startswith("I")
    assert np.array_equal(load(data, params(8)), grey_rgb(np.round(WIDE / 257)))


def test_16_bit_grey_with_a_transparent_value() -> None:
    array = load(png(WIDE, 16, 0, before=chunk(b"tRNS", struct.pack(">H", int(WIDE[3, 3])))), params(8))
    assert (array[3, 3] == 255).all()
    assert np.array_equal(array[4:], grey_rgb(np.round(WIDE / 257))[4:])


def tiff(values: NDArray[Any], bits: int, photometric: int, sample_format: int = 1) -> bytes:
    """An uncompressed one-channel TIFF, little-endian; 12-bit values come packed."""
    height, width = (8, 8)
    strip = values.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(strip)), (339, sample_format)]
    directory = b"".join(struct.pack("<HHII", tag, 4 if tag == 279 else 3, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(strip))
    return head + strip + struct.pack("<H", len(tags)) + directory + b"\0" * 4


def test_16_bit_tiff_whose_zero_is_white() -> None:
    array = load(tiff(WIDE, 16, photometric=0), params(8))
    assert np.array_equal(array, grey_rgb(255 - np.round(WIDE / 257)))


def test_12_bit_tiff_is_scaled_by_12_bits() -> None:
    values = np.linspace(0, 4095, 64).astype(np.uint16)
    first, second = values[::2], values[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8)
    array = load(tiff(packed, 12, photometric=1), params(8))
    assert np.array_equal(array, grey_rgb(np.round(values.reshape(8, 8) / 4095 * 255)))


def test_16_bit_color() -> None:
    wide = patches().astype(np.uint16) * 257
    assert np.array_equal(load(png(wide, 16, 2), params(8)), patches())
    alpha = np.full((8, 8, 1), 65535, np.uint16)
    assert np.array_equal(load(png(np.dstack([wide, alpha]), 16, 6), params(8)), patches())
    grey_alpha = np.dstack([GREY.astype(np.uint16) * 257, alpha])
    assert np.array_equal(load(png(grey_alpha, 16, 4), params(8)), grey_rgb(GREY))


@pytest.mark.parametrize(
    "data",
    [
        tiff(np.linspace(0, 1, 64, dtype=np.float32), 32, 1, sample_format=3),
        tiff(np.arange(64, dtype=np.uint32), 32, 1),
        tiff(np.arange(64, dtype=np.int32), 32, 1, sample_format=2),
        tiff(np.arange(64, dtype=np.int16), 16, 1, sample_format=2),
    ],
    ids=["float", "uint32", "int32", "int16"],
)
def test_pixels_of_unknown_range_are_refused(data: bytes) -> None:
    assert Image.open(BytesIO(data)).mode in ("I", "F")
    with pytest.raises(UnreadableImage, match="unknown range"):
        load(data, params(8))


def without_segment(jpeg: bytes, marker: int) -> bytes:
    start = jpeg.index(bytes([0xFF, marker]))
    (length,) = struct.unpack(">H", jpeg[start + 2 : start + 4])
    return jpeg[:start] + jpeg[start + 2 + length :]


CMYK = Image.merge("CMYK", [*ImageOps.invert(Image.fromarray(patches())).split(), Image.new("L", (8, 8))])


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format: str) -> None:
    array = load(encoded(CMYK, format, **({"quality": 100} if format == "JPEG" else {})), params(8))
    assert difference(array, patches()).max() <= (4 if format == "JPEG" else 0)


def test_cmyk_jpeg_that_is_not_adobes_is_not_inverted() -> None:
    adobe = encoded(ImageOps.invert(CMYK.convert("RGB")).convert("CMYK"), "JPEG")  # any bytes with an Adobe marker
    assert "adobe" in Image.open(BytesIO(adobe)).info
    raw = Image.merge("CMYK", [Image.eval(band, lambda value: 255 - value) for band in CMYK.split()])
    plain = without_segment(encoded(raw, "JPEG", quality=100), 0xEE)  # Pillow inverts again as it saves
    assert "adobe" not in Image.open(BytesIO(plain)).info
    assert difference(load(plain, params(8)), patches()).max() <= 4


def test_ycck_jpeg() -> None:
    negative = ImageOps.invert(Image.fromarray(patches())).convert("YCbCr")
    raw = Image.merge("CMYK", [*negative.split(), Image.new("L", (8, 8), 255)])
    saved = encoded(Image.merge("CMYK", [Image.eval(b, lambda v: 255 - v) for b in raw.split()]), "JPEG", quality=100)
    at = saved.index(b"Adobe") + 11
    data = saved[:at] + b"\x02" + saved[at + 1 :]  # the transform: YCCK
    assert Image.open(BytesIO(data)).info["adobe_transform"] == 2
    assert difference(load(data, params(8)), patches()).max() <= 4


@REFUSED_BY_OLD_PILLOW
def test_ycbcr_tiff() -> None:
    data = encoded(Image.fromarray(patches()).convert("YCbCr"), "TIFF")
    assert Image.open(BytesIO(data)).mode == "YCbCr"
    assert difference(load(data, params(8)), patches()).max() <= 3


def test_lab_tiff() -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(patches()), to_lab)
    assert lab is not None
    data = encoded(lab, "TIFF")
    assert Image.open(BytesIO(data)).mode == "LAB"
    assert difference(load(data, params(8)), patches()).max() <= 6


@pytest.mark.parametrize(("format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})])
def test_the_first_frame_counts(format: str, options: dict[str, Any]) -> None:
    first, second = Image.fromarray(patches()), Image.new("RGB", (8, 8), (1, 2, 3))
    data = encoded(first, format, save_all=True, append_images=[second], **options)
    assert Image.open(BytesIO(data)).n_frames == 2  # type: ignore[attr-defined]
    assert np.array_equal(load(data, params(8)), patches())


def test_multi_picture_jpeg_of_a_phone(drafts: list[tuple[int, int]]) -> None:
    first = photo(640, 640)
    data = encoded(first, "MPO", save_all=True, append_images=[Image.new("RGB", (640, 640))], quality=90)
    assert Image.open(BytesIO(data)).format == "MPO"
    drafts.clear()
    array = load(data, params(40))
    assert drafts[0] == (80, 80)
    assert difference(array, load(encoded(first, "JPEG", quality=90), params(40))).max() == 0


# --- refusals ---


@pytest.mark.parametrize("format", ["PPM", "TGA", "ICO", "PCX", "EPS", "JPEG2000"])
def test_formats_beyond_the_list_are_refused(format: str) -> None:
    with pytest.raises(UnreadableImage, match=r"is not an image \(JPEG, PNG, WEBP, BMP, GIF, TIFF\)|is JPEG 2000"):
        load(encoded(photo(16, 16), format), params())


@pytest.mark.parametrize(("data", "reason"), [(b"", "is an empty file"), (b"hello\n" * 9, "is not an image")])
def test_what_is_no_picture_is_named_with_its_file(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(UnreadableImage) as caught:
        load(path, params())
    assert caught.value.what.startswith(reason)
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert isinstance(caught.value, DataError)


def test_folder_missing_file_broken_link_and_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in [
        ("folder.jpg", "is a folder, not an image"),
        ("missing.jpg", "no such file"),
        ("link.jpg", "no such file"),
        ("pipe.jpg", "is not a regular file"),
    ]:
        with pytest.raises(UnreadableImage) as caught:
            load(tmp_path / name, params())
        assert (caught.value.what, caught.value.file) == (reason, str(tmp_path / name))


def test_forbidden_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.touch()

    def forbidden(_: Path) -> bytes:  # a real one would open for root, who often runs the tests
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(decoding, "read_regular", forbidden)
    with pytest.raises(UnreadableImage, match=r"a\.png: can't be read: permission denied"):
        load(path, params())


WHOLE = {
    "jpeg": encoded(photo(300, 200), "JPEG"),
    "jpeg progressive": encoded(photo(300, 200), "JPEG", progressive=True),
    "jpeg cmyk": encoded(photo(300, 200).convert("CMYK"), "JPEG"),
    "jpeg reduced": encoded(photo(700, 500), "JPEG"),
    "png": encoded(photo(300, 200), "PNG"),
    "webp": encoded(photo(300, 200), "WEBP"),
    "webp animated": encoded(photo(99, 99), "WEBP", save_all=True, append_images=[photo(99, 99, seed=1)]),
    "bmp": encoded(photo(300, 200), "BMP"),
    "gif": encoded(photo(300, 200), "GIF"),
    "tiff": encoded(photo(300, 200), "TIFF"),
    "tiff lzw": encoded(photo(300, 200), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize("name", WHOLE)
def test_truncated_files_are_found(name: str, part: float) -> None:
    data = WHOLE[name]
    load(data, params())
    with pytest.raises(UnreadableImage, match=r"damaged, truncated|is cut"):
        load(data[: int(len(data) * part)], params())


def test_pillows_switch_for_truncated_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match="LOAD_TRUNCATED_IMAGES is on"):
        load(WHOLE["jpeg"], params())


def test_running_out_of_memory_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", full)
    with pytest.raises(UnreadableImage, match="needs more memory"):
        load(WHOLE["png"], params())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", WHOLE)
def test_damage_never_ends_in_a_traceback(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMIT", 0.02)
    rng = random.Random(name)
    outcomes: list[bool] = []
    for _ in range(60):
        damaged = bytearray(WHOLE[name])
        for _ in range(rng.choice([1, 4, 20])):
            damaged[rng.randrange(rng.choice([64, 600, len(damaged)]))] = rng.randrange(256)
        try:
            outcomes.append(load(bytes(damaged), params(8)).shape == (8, 8, 3))
        except UnreadableImage:
            outcomes.append(False)
    assert False in outcomes  # the damage was noticed at least once


# --- silence and threads ---


def odd_metadata() -> dict[str, bytes]:
    """Files with sound pixels that make Pillow warn."""
    picture = Image.fromarray(patches())
    apng = encoded(picture, "PNG", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    at = apng.index(b"acTL")
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[305] = "x" * 60
    tiff = encoded(picture, "TIFF", tiffinfo=directory)
    far = struct.pack("<HHI", 305, 2, 61)
    jpeg = encoded(picture, "JPEG", exif=BROKEN_EXIF["too long"])
    return {
        "exif": without_segment(jpeg, 0xE0),  # without JFIF's resolution Pillow looks for one in EXIF
        "apng": apng[: at - 4] + chunk(b"acTL", bytes(8)) + apng[at + 16 :],
        "tiff": tiff.replace(far, struct.pack("<HHI", 305, 2, 0x0FFFFFFF)),
        "mpo": jpeg[:2] + b"\xff\xe2" + struct.pack(">H", 14) + b"MPF\0II*\0\xff\xff\xff\xff" + jpeg[2:],
    }


@pytest.mark.parametrize("name", odd_metadata())
def test_odd_metadata_makes_pillow_warn(name: str) -> None:
    """Without this, the test of our silence could not fail."""
    with pytest.warns(
        UserWarning, match="Invalid APNG|malformed MPO|Expecting to read|larger than file|Truncated File Read"
    ):
        Image.open(BytesIO(odd_metadata()[name])).getexif()


def python(code: str, *args: object, warn: str = "default") -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, where pytest has put no warning filters before ours."""
    command = [sys.executable, "-W", f"{warn}::UserWarning", "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("warn", ["default", "error"])
def test_nothing_is_said_on_stderr(tmp_path: Path, warn: str) -> None:
    for name, data in odd_metadata().items():
        (tmp_path / name).write_bytes(data)
    code = """
import sys, pathlib
from PIL import Image
from tlkit.data.preprocessing import load
from tlkit.plugin.contract import Preprocessing
Image.MAX_IMAGE_PIXELS = 40  # a TIFF of 64 pixels is now one that Pillow warns of as a bomb
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    print(path.name, load(path, Preprocessing(8, (0, 0, 0), (1, 1, 1))).mean() > 0)
"""
    done = python(code, tmp_path, warn=warn)
    assert done.stdout.split() == [word for name in sorted(odd_metadata()) for word in (name, "True")]
    assert done.stderr == ""


def test_only_warnings_of_a_thread_that_is_loading_are_silenced(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(WHOLE["png"])
    code = """
import pathlib, sys, threading, warnings
from PIL import ImageFile
from tlkit.data.preprocessing import load
from tlkit.plugin.contract import Preprocessing
prepare, inside, go_on = ImageFile.ImageFile.load_prepare, threading.Event(), threading.Event()
def slow(picture):
    warnings.warn("by the thread that loads")
    inside.set()
    go_on.wait(30)
    prepare(picture)
ImageFile.ImageFile.load_prepare = slow
file, pixels = pathlib.Path(sys.argv[1]), Preprocessing(8, (0, 0, 0), (1, 1, 1))
thread = threading.Thread(target=load, args=(file, pixels))
thread.start()
inside.wait(30)
warnings.warn("by another thread")
go_on.set()
thread.join()
load(file, pixels)
warnings.warn("afterwards")
"""
    done = python(code, tmp_path / "a.png")
    said = [line.partition("UserWarning: ")[2] for line in done.stderr.splitlines() if "UserWarning" in line]
    assert said == ["by another thread", "afterwards"]


def test_many_threads_give_what_one_gives() -> None:
    pictures = [*WHOLE.values(), encoded(Image.fromarray(RGBA), "PNG"), png(WIDE, 16, 0), encoded(CMYK, "JPEG")]
    expected = [load(data, params(32)) for data in pictures]
    barrier = threading.Barrier(8)

    def work(start: int) -> bool:
        barrier.wait()
        order = [(start + step) % len(pictures) for step in range(2 * len(pictures))]
        return all(np.array_equal(load(pictures[index], params(32)), expected[index]) for index in order)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [True] * 8
