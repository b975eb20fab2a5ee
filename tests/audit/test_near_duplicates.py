"""Near-duplicates by hand."""

from __future__ import annotations

import numpy as np

from tests.audit.test_fingerprints import blobs, fingerprint
from tlkit.audit.near_duplicates import Pair, find_pairs, groups


def test_noise_makes_a_near_duplicate_and_another_color_or_shape_does_not():
    one, other = blobs(0), blobs(1)
    noisy = np.clip(one + np.random.default_rng(0).normal(0, 4, one.shape), 0, 255).astype(np.uint8)
    red = np.clip(one.astype(np.int64) + np.array([60, 0, -30]), 0, 255).astype(np.uint8)
    assert find_pairs([fingerprint(each) for each in (one, other, noisy, red)]) == [Pair(0, 2, exact=False)]


def test_images_without_contrast_are_duplicates_only_if_their_bytes_are_the_same():
    gray, nearly = np.full((32, 32, 3), 90, np.uint8), np.full((32, 32, 3), 91, np.uint8)
    assert find_pairs([fingerprint(gray), fingerprint(nearly)]) == []
    assert find_pairs([fingerprint(gray), fingerprint(gray)]) == [Pair(0, 1, exact=True)]


def test_duplicates_of_duplicates_are_one_group():
    pairs = [Pair(0, 3, exact=True), Pair(3, 4, exact=False), Pair(1, 2, exact=False)]
    assert groups(pairs, 6).tolist() == [0, 1, 1, 0, 0, 5]
