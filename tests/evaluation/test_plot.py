"""The picture of the scores."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from tlkit.errors import ResourceError, UsageError
from tlkit.evaluation.metrics import score
from tlkit.evaluation.plot import check_plot, plot


def scores(classes, images=200):
    random = np.random.default_rng(0)
    truth = random.integers(0, classes, images)
    logits = random.normal(size=(images, classes)) + 3 * np.eye(classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return score(probabilities.astype(np.float32), truth)


@pytest.mark.parametrize("classes", [2, 10, 40])
def test_a_picture_for_few_and_many_classes(tmp_path, classes):
    plot(scores(classes), [f"class {number}" for number in range(classes)], tmp_path / "scores.png")
    with Image.open(tmp_path / "scores.png") as picture:
        assert picture.width > picture.height
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_other_formats(tmp_path, suffix):
    plot(scores(3), ["a", "b", "c"], tmp_path / f"scores.{suffix}")
    assert (tmp_path / f"scores.{suffix}").stat().st_size > 1000


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.png, \.svg, \.pdf"):
        check_plot(tmp_path / "scores.txt")


def test_a_missing_matplotlib_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ResourceError, match=r'pip install "tlkit\[plot\]"'):
        check_plot(tmp_path / "scores.png")


def test_reliability_counts_every_image():
    result = scores(4)
    assert result.reliability.shape == (15, 3)
    assert result.reliability[:, 0].sum() == 200
    expected = (result.reliability[:, 0] * result.reliability[:, 2]).sum() / 200
    assert expected == pytest.approx(result.accuracy)
