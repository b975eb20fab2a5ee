"""Near-duplicates by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.audit.test_fingerprints import blobs, fingerprint
from tlkit.audit.fingerprints import fingerprints
from tlkit.audit.near_duplicates import Pair, find_pairs, groups, shows_same


@pytest.fixture
def pairs_of(tmp_path):
    """Find the pairs of images, which are written to files."""

    def find(images):
        paths = [tmp_path / f"{number}.png" for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path)
        return find_pairs([fingerprint(each) for each in images], paths)

    return find


def test_noise_makes_a_near_duplicate_and_another_color_or_shape_does_not(pairs_of):
    one, other = blobs(0), blobs(1)
    noisy = np.clip(one + np.random.default_rng(0).normal(0, 4, one.shape), 0, 255).astype(np.uint8)
    red = np.clip(one.astype(np.int64) + np.array([60, 0, -30]), 0, 255).astype(np.uint8)
    assert pairs_of([one, other, noisy, red]) == [Pair(0, 2, exact=False)]


def test_images_without_contrast_are_duplicates_only_if_their_bytes_are_the_same(pairs_of):
    gray, nearly = np.full((32, 32, 3), 90, np.uint8), np.full((32, 32, 3), 91, np.uint8)
    assert pairs_of([gray, nearly]) == []
    assert pairs_of([gray, gray]) == [Pair(0, 1, exact=True)]


def rig(count, size=96):
    """Pictures of a fixed background, each with another small specimen at another place."""
    random, (y, x) = np.random.default_rng(0), np.mgrid[:size, :size]
    background = 128 + 50 * np.sign(np.sin(x / 4)) * np.sign(np.sin(y / 4)) + 20 * np.sin(x / 17)
    for _ in range(count):
        image = np.repeat((background + random.normal(0, 3, background.shape))[..., None], 3, axis=2)
        left, top = random.integers(30, 50, 2)
        image[top : top + 14, left : left + 14] = np.kron(random.uniform(0, 255, (4, 4, 3)), np.ones((4, 4, 1)))[
            :14, :14
        ]
        yield image.clip(0, 255).astype(np.uint8)


def test_pictures_of_a_fixed_rig_are_no_duplicates_and_an_encoded_copy_is_one(tmp_path):
    images, paths = list(rig(60)), [tmp_path / f"{number}.png" for number in range(61)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    paths[60] = tmp_path / "again.jpg"
    Image.open(paths[7]).resize((64, 64)).save(paths[60], quality=60)
    assert find_pairs(fingerprints(paths), paths) == [Pair(7, 60, exact=False)]
    assert not shows_same(paths[0], paths[1])
    assert shows_same(paths[7], paths[60])
    assert not shows_same(paths[0], tmp_path / "missing.png")


def test_duplicates_of_duplicates_are_one_group():
    pairs = [Pair(0, 3, exact=True), Pair(3, 4, exact=False), Pair(1, 2, exact=False)]
    assert groups(pairs, np.arange(6)).tolist() == [0, 1, 1, 0, 0, 5]
    assert groups(pairs[:1], np.array([0, 1, 1, 2, 2, 3])).tolist() == [0, 1, 1, 0, 0, 3]
