"""Sketches of images."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tlkit.audit.fingerprints import FREQUENCIES, Fingerprint, fingerprints, sketch


def blobs(seed):
    """An image of a few large spots."""
    coarse = np.random.default_rng(seed).integers(60, 190, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((32, 32)))


def fingerprint(image):
    return Fingerprint(hashlib.sha256(image.tobytes()).hexdigest(), None, sketch(image))


@given(st.integers(0, 2**32 - 1), st.integers(-20, 20))
def test_brightness_changes_the_mean_color_alone(seed, more):
    one = blobs(seed)
    other = (one.astype(np.int64) + more).astype(np.uint8)
    assert np.abs(sketch(one) - sketch(other))[:FREQUENCIES].max() < 0.05
    assert np.allclose(sketch(other)[FREQUENCIES:] - sketch(one)[FREQUENCIES:], more, atol=1e-3)


def test_an_unreadable_file_has_an_empty_fingerprint(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.fromarray(blobs(0)).save(tmp_path / "good.png")
    good, broken, missing = fingerprints([tmp_path / name for name in ("good.png", "broken.png", "missing.png")])
    assert good.sha256 == hashlib.sha256((tmp_path / "good.png").read_bytes()).hexdigest()
    assert good.header.format == "PNG"
    for each in (broken, missing):
        assert (each.sha256, each.header, each.sketch.any()) == ("", None, False)
