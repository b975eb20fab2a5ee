"""Planted faults are found, and a clean set is not accused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.learn.advise.asking import ask
from tests.tiny import write_images
from tlkit.learn.advise.advice import advise
from tlkit.learn.audit.audit import audit
from tlkit.learn.audit.files import Look, perceptual_hash, shortcuts
from tlkit.learn.audit.labels import suspects


@pytest.fixture
def photos(tmp_path):
    """Two splits of three classes, each picture another."""
    write_images(tmp_path / "all", 24)
    for label in ("dark", "light", "middle"):
        for number, file in enumerate(sorted((tmp_path / "all" / label).iterdir())):
            place = tmp_path / "photos" / ("train" if number < 18 else "val") / label
            place.mkdir(parents=True, exist_ok=True)
            file.rename(place / file.name)
    return tmp_path / "photos"


def found_in(photos):
    return audit(advise(photos, ask()))


def test_a_clean_set_is_not_accused(photos):
    found = found_in(photos)
    assert (list(found.twins), list(found.shortcuts), dict(found.imbalance)) == ([], [], {})
    assert len(found.mislabelled) <= 2
    assert found.images == 72


def test_the_same_file_in_two_splits_and_in_two_classes(photos):
    shutil.copy(photos / "train/dark/00.png", photos / "val/dark/again.png")
    shutil.copy(photos / "train/dark/01.png", photos / "train/light/again.png")
    twins = {frozenset((twin.one, twin.other)): twin for twin in found_in(photos).twins}
    leak = twins[frozenset(("train/dark/00.png", "val/dark/again.png"))]
    other = twins[frozenset(("train/dark/01.png", "train/light/again.png"))]
    assert (leak.exact, leak.leak, leak.contradiction) == (True, True, False)
    assert (other.exact, other.leak, other.contradiction) == (True, False, True)
    assert len(twins) == 2


def test_a_picture_encoded_anew_and_made_smaller(photos):
    y, x = np.mgrid[0:80, 0:80]
    shape = np.stack([x * 3, y * 3, 255 * ((x - 30) ** 2 + (y - 45) ** 2 < 400)], -1).astype(np.uint8)
    Image.fromarray(shape).save(photos / "train/dark/shape.png")
    Image.fromarray(shape).resize((56, 56)).save(photos / "val/dark/shape.jpg", quality=70)
    (twin,) = found_in(photos).twins
    assert {twin.one, twin.other} == {"train/dark/shape.png", "val/dark/shape.jpg"}
    assert (twin.exact, twin.leak) == (False, True)


def test_a_wrong_label(photos):
    (photos / "train/dark/05.png").rename(photos / "train/light/wrong.png")
    found = {each.name: each for each in found_in(photos).mislabelled}
    assert found["train/light/wrong.png"].looks == "dark"
    assert len(found) <= 3


def test_a_file_format_that_gives_the_class_away(photos):
    for file in photos.rglob("light/*.png"):
        with Image.open(file) as picture:
            picture.save(file.with_suffix(".jpg"), quality=95)
        file.unlink()
    found = {suspect.what: suspect for suspect in found_in(photos).shortcuts}
    # One of three classes of the same size: log 3 - 2/3 log 2 of log 3 are known, less what few files leave open.
    assert found["file format"].explained == pytest.approx(1 - 2 / 3 * np.log(2) / np.log(3), abs=0.06)
    assert "EXIF" not in found


def test_classes_of_very_different_size(photos):
    for file in sorted(photos.glob("*/dark/*.png"))[:-6]:
        file.unlink()
    for split in ("train", "val"):
        (photos / split / "dark").mkdir(exist_ok=True)
    shutil.copy(min(photos.glob("*/dark/*.png")), photos / "train/dark/x.png")
    found = found_in(photos)
    assert found.imbalance["light"] >= 3 * found.imbalance["dark"]


def test_a_few_images_are_not_enough_for_labels(tmp_path):
    found = found_in(write_images(tmp_path / "few", 4))
    assert found.too_few
    assert any("not enough to tell" in line for line in found.lines())


def test_confident_learning_by_hand():
    shares = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.1, 0.9], [0.2, 0.8], [0.4, 0.6]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    # The thresholds are the means of (0.9, 0.8, 0.1) = 0.6 and of (0.9, 0.8, 0.6) = 0.767. Image 2 is labelled 0 and
    # has 0.9 of class 1: counted as 1. Image 5 reaches neither threshold.
    assert suspects(shares, labels) == [(2, 1)]


@given(st.integers(0, 2**32 - 1))
def test_a_classifier_that_agrees_with_every_label_has_no_suspects(seed):
    random = np.random.default_rng(seed)
    shares = random.dirichlet([1.0] * 3, 30)
    assert suspects(shares, shares.argmax(axis=1)) == []


@given(st.integers(0, 2**32 - 1), st.integers(-20, 20))
def test_the_perceptual_hash_does_not_see_brightness(seed, more):
    coarse = np.random.default_rng(seed).integers(60, 190, (6, 6, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((32, 32)), np.int64)
    one, other = (perceptual_hash(each.astype(np.uint8)) for each in (image, image + more))
    assert (one[1:] != other[1:]).sum() <= 2


def test_a_property_that_says_nothing_is_no_suspect():
    from tlkit.data.images import Header

    random = np.random.default_rng(0)
    looks = [
        Look(str(number), Header(str(random.integers(3)), 10, 10, "RGB", "none"), np.zeros(64, bool))
        for number in range(200)
    ]
    assert shortcuts(looks, np.arange(200) % 2, 0) == []
