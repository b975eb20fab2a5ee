"""Shortcuts by hand."""

from __future__ import annotations

import numpy as np

from tlkit.audit.fingerprints import FREQUENCIES, Fingerprint
from tlkit.audit.shortcuts import MIN_EXPLAINED, shortcuts
from tlkit.data.decoding import Header


def fingerprint(number, file_format):
    return Fingerprint(str(number), Header(file_format, 10, 10, "RGB", "none"), np.zeros(FREQUENCIES + 3))


def test_a_property_that_is_independent_of_the_class_is_no_shortcut():
    random = np.random.default_rng(0)
    files = [fingerprint(number, str(random.integers(3))) for number in range(200)]
    assert shortcuts(files, np.arange(200) % 2, ["a", "b"], 0) == []


def test_one_class_of_ten_that_its_format_reveals():
    labels, classes = np.arange(400) % 10, [f"class {number}" for number in range(10)]
    files = [fingerprint(number, "PNG" if label == 3 else "JPEG") for number, label in enumerate(labels)]
    (found,) = shortcuts(files, labels, classes, 0)
    assert (found.property, found.revealed_class) == ("file format", "class 3")
    assert found.class_explained > 0.8
    assert found.explained < MIN_EXPLAINED  # so it would not be found by that alone
    assert 0.1 < found.accuracy <= 0.2  # it knows one class, and guesses among the others
    assert "may be that of the file format" in found.warning()
