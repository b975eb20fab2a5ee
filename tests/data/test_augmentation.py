"""Random views of a picture: inside it, as different as they are said to be, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tlkit.data import augmentation
from tlkit.data.augmentation import AREA, RATIO, View, random_view
from tlkit.data.preprocessing import load
from tlkit.plugin.contract import Preprocessing

PREPROCESSING = Preprocessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop_pct=1.0, interpolation="bilinear")
EXTENTS = [(640, 480), (33, 500), (7.5, 3.25), (1, 1)]


@pytest.fixture
def picture(tmp_path):
    """A slope from left to right in red and from top to bottom in green."""
    x, y = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48))
    Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8)).save(tmp_path / "slope.png")
    return tmp_path / "slope.png"


@pytest.mark.parametrize("extent", EXTENTS)
def test_a_view_lies_inside_the_picture(extent):
    for index in range(300):
        left, top, right, bottom = random_view(0, 1, index).box(extent)
        assert 0 <= left < right <= extent[0]
        assert 0 <= top < bottom <= extent[1]


def test_views_have_the_areas_and_ratios_they_are_drawn_from():
    views = [random_view(0, 1, index) for index in range(2000)]
    for name, (low, high) in (("area", AREA), ("ratio", RATIO), ("x", (0, 1)), ("y", (0, 1))):
        values = [getattr(view, name) for view in views]
        assert low <= min(values) < low + 0.02
        assert high - 0.02 < max(values) <= high
    assert 0.45 < np.mean([view.mirrored for view in views]) < 0.55
    boxes = np.array([view.box((1000, 1000)) for view in views])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1e6
    assert np.abs(areas - [view.area for view in views]).max() < 0.14  # less only where a part jutted out


def test_seed_number_and_index_decide_and_nothing_else():
    assert random_view(1, 2, 3) == random_view(1, 2, 3)
    assert len({random_view(*key) for key in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4))}) == 4


def test_the_view_of_everything_is_the_whole_picture(picture):
    whole = load(picture, PREPROCESSING, view=View(1.0, 64 / 48, 0.3, 0.7, mirrored=False))
    with Image.open(picture) as opened:
        expected = np.asarray(opened.resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(whole, expected)


def test_the_place_of_a_view_is_where_its_pixels_come_from(picture):
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        part = load(picture, PREPROCESSING, view=View(0.1, 1.0, x, y, mirrored=False))
        assert (part[..., 0].mean() > 127) == bool(x)
        assert (part[..., 1].mean() > 127) == bool(y)


def test_a_mirrored_view_is_the_other_from_right_to_left(picture):
    plain, mirrored = (
        load(picture, PREPROCESSING, view=View(0.5, 1.2, 0.4, 0.9, mirrored=side)) for side in (False, True)
    )
    assert np.array_equal(mirrored, plain[:, ::-1])
    assert not np.array_equal(mirrored, plain)


def test_without_a_view_nothing_is_random(picture):
    assert np.array_equal(load(picture, PREPROCESSING), load(picture, PREPROCESSING, view=None))


def test_a_small_view_of_a_large_jpeg_keeps_its_detail(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg", quality=100)
    Image.fromarray(np.asarray(Image.open(tmp_path / "noise.jpg"))).save(tmp_path / "noise.png")
    view = View(0.004, 1.0, 0.5, 0.5, mirrored=False)  # 32 x 32 pixels: nothing may be decoded at reduced scale
    jpeg, png = (load(tmp_path / name, PREPROCESSING, view=view) for name in ("noise.jpg", "noise.png"))
    assert np.abs(jpeg.astype(int) - png.astype(int)).max() <= 1


IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def test_the_key_decides():
    one, same, other = (augmentation.randaugment(IMAGE, 9, [0, 1, n]) for n in (4, 4, 5))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.shape == IMAGE.shape
    assert one.dtype == np.uint8


@pytest.mark.parametrize("name", [name for name in augmentation._DISTORTIONS if name != "identity"])
def test_every_distortion_distorts(name):
    functional = augmentation.transforms().functional
    distort = augmentation._DISTORTIONS[name]
    assert not np.array_equal(np.array(distort(functional, Image.fromarray(IMAGE // 2), 0.9)), IMAGE // 2)
