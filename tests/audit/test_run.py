"""The audit finds planted faults, and reports none in a clean dataset."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.kit.tiny import Tiny, write_images
from tlkit.audit.run import audit
from tlkit.data import dataset
from tlkit.model import trunk


@pytest.fixture
def photos(tmp_path):
    """Two splits of three classes, without duplicates."""
    write_images(tmp_path / "all", 24)
    for label in ("dark", "light", "middle"):
        for number, file in enumerate(sorted((tmp_path / "all" / label).iterdir())):
            place = tmp_path / "photos" / ("train" if number < 18 else "val") / label
            place.mkdir(parents=True, exist_ok=True)
            file.rename(place / file.name)
    return tmp_path / "photos"


def audited(photos):
    return audit(dataset.read(photos), trunk.build(Tiny()))


def test_a_clean_dataset_has_no_findings(photos):
    found = audited(photos)
    assert (list(found.near_duplicates), list(found.shortcuts), dict(found.class_imbalance)) == ([], [], {})
    assert len(found.label_issues) <= 2
    assert found.images == 72
    assert found.enough_images


def test_exact_duplicates_across_splits_and_across_classes(photos):
    shutil.copy(photos / "train/dark/00.png", photos / "val/dark/again.png")
    shutil.copy(photos / "train/dark/01.png", photos / "train/light/again.png")
    found = audited(photos)
    pairs = {frozenset((each.first, each.second)): each for each in found.near_duplicates}
    leak = pairs[frozenset(("train/dark/00.png", "val/dark/again.png"))]
    conflict = pairs[frozenset(("train/dark/01.png", "train/light/again.png"))]
    assert (leak.exact, leak.leakage, leak.label_conflict) == (True, True, False)
    assert (conflict.exact, conflict.leakage, conflict.label_conflict) == (True, False, True)
    assert len(pairs) == 2
    assert found.leakage == [leak]
    assert "exact duplicates: 2, 1 across splits (leakage), 1 across classes" in str(found).splitlines()


def test_a_reencoded_and_downscaled_copy_is_a_near_duplicate(photos):
    y, x = np.mgrid[0:80, 0:80]
    shape = np.stack([x * 3, y * 3, 255 * ((x - 30) ** 2 + (y - 45) ** 2 < 400)], -1).astype(np.uint8)
    Image.fromarray(shape).save(photos / "train/dark/shape.png")
    Image.fromarray(shape).resize((56, 56)).save(photos / "val/dark/shape.jpg", quality=70)
    (pair,) = audited(photos).near_duplicates
    assert {pair.first, pair.second} == {"train/dark/shape.png", "val/dark/shape.jpg"}
    assert (pair.exact, pair.leakage) == (False, True)


def test_a_wrong_label_is_a_label_issue(photos):
    (photos / "train/dark/05.png").rename(photos / "train/light/wrong.png")
    found = {each.name: each for each in audited(photos).label_issues}
    assert found["train/light/wrong.png"].likely_label == "dark"
    assert len(found) <= 3


def test_a_wrong_label_that_a_copy_shares_is_a_label_issue(photos):
    (photos / "train/dark/05.png").rename(photos / "train/light/wrong.png")
    shutil.copy(photos / "train/light/wrong.png", photos / "val/light/also.png")
    assert {"train/light/wrong.png", "val/light/also.png"} <= {each.name for each in audited(photos).label_issues}


def test_a_file_format_that_reveals_the_class_is_a_shortcut(photos):
    for file in photos.rglob("light/*.png"):
        with Image.open(file) as picture:
            picture.save(file.with_suffix(".jpg"), quality=95)
        file.unlink()
    found = {each.property: each for each in audited(photos).shortcuts}
    # One of three classes of the same size: log 3 - 2/3 log 2 of log 3 are known, less what few files leave open.
    assert found["file format"].explained == pytest.approx(1 - 2 / 3 * np.log(2) / np.log(3), abs=0.06)
    assert "EXIF" not in found


def test_class_imbalance_has_the_counts(photos):
    for file in sorted(photos.glob("*/dark/*.png"))[:-6]:
        file.unlink()
    for split in ("train", "val"):
        (photos / split / "dark").mkdir(exist_ok=True)
    shutil.copy(min(photos.glob("*/dark/*.png")), photos / "train/dark/x.png")
    found = audited(photos)
    assert found.class_imbalance["light"] >= 3 * found.class_imbalance["dark"]


def test_few_images_are_inconclusive_for_label_issues(tmp_path):
    found = audited(write_images(tmp_path / "few", 4))
    assert not found.enough_images
    assert "label issues and shortcuts: inconclusive" in str(found)
