"""Rows for a device: by whole numbers alone they give what Pillow gives."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ExifTags, Image

from tlkit.data import resampling
from tlkit.data.decoding import UnreadableImage
from tlkit.data.preprocessing import load
from tlkit.data.resampling import BITS, SUPPORT, is_known, layout, pack
from tlkit.plugin.contract import Preprocessing


def made(size=32, interpolation="bicubic", mode="center", crop_pct=0.875):
    return Preprocessing(size, (0.5,) * 3, (0.5,) * 3, crop_pct, mode, interpolation)


def by_integers(row, its):
    """Do with a row what a device is to do, in Python's way."""
    square = row[: its.pixels].reshape(its.side, its.side, 3).astype(np.int64)
    tables = row[its.pixels :].view(np.int32).reshape(2, 2 * its.size, -1).astype(np.int64)
    for table in tables:
        matrix = np.zeros((its.size, its.side + 2 * its.taps), np.int64)
        high, low = table.reshape(2, its.size, -1)
        assert abs(low[:, 3:-1]).max() <= 1024
        for line, (_, before, *_), weights in zip(matrix, high, (high << 11) + low, strict=True):
            line[before + 1 + its.taps :][: its.taps] = weights[3:-1]
        assert not matrix[:, : its.taps].any()
        assert not matrix[:, its.taps + its.side :].any()
        sums = np.einsum("sx,yxc->syc", matrix[:, its.taps : its.taps + its.side], square)
        square = np.clip((sums + (1 << (BITS - 1))) >> BITS, 0, 255)
    return (square.transpose(1, 0, 2) if tables[0, 0, 0] else square).astype(np.uint8)


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", SUPPORT)
@pytest.mark.parametrize("size", [1, 7, 32])
def test_a_row_gives_the_bytes_of_pillow(size, interpolation, mode):
    random = np.random.default_rng(size)
    preprocessing = made(size, interpolation, mode, random.choice([0.875, 1.0]))
    for number in range(24):
        shape = random.integers(1, 3 * size + 2, 2)
        image = Image.fromarray((255 * random.integers(0, 2, (*shape, 3))).astype(np.uint8))  # the sharpest edges
        image = image if number % 3 else image.convert("L")
        image.getexif()[ExifTags.Base.Orientation] = max(1, number - 16)
        assert np.array_equal(
            by_integers(pack(image, preprocessing), layout(preprocessing)), load(image, preprocessing)
        )


@pytest.mark.parametrize("shape", [(150, 40), (32, 32), (300, 33), (65, 64), (1, 1), (3000, 30), (40, 4000)], ids=str)
def test_tall_wide_and_large_images_too(shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    for preprocessing in (made(), made(mode="squash"), made(crop_pct=1.0)):
        assert np.array_equal(
            by_integers(pack(image, preprocessing), layout(preprocessing)), load(image, preprocessing)
        )


def test_an_image_that_is_too_large_is_resized_before(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 95, 3), dtype=np.uint8)
    rendered = []
    monkeypatch.setattr(
        resampling, "render", lambda *given, whole=resampling.render: rendered.append(1) or whole(*given)
    )
    row = pack(pixels, made(crop_pct=1.0))
    assert rendered
    assert np.array_equal(row[: 80 * 80 * 3].reshape(80, 80, 3)[:32, :32], load(pixels, made(crop_pct=1.0)))
    pack(pixels[:79, :79], made(crop_pct=1.0))
    assert len(rendered) == 1


@pytest.mark.parametrize(
    "change", [{"mode": "border"}, {"interpolation": "nearest"}, {"interpolation": "box"}], ids=str
)
def test_of_other_preprocessing_there_are_no_rows(change):
    assert not is_known(made(**change))


def test_errors_are_those_of_load(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"text")
    with pytest.raises(UnreadableImage, match="is not an image") as caught:
        pack(broken, made())
    assert caught.value.file == str(broken)
