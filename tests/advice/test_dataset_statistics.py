"""Statistics of a dataset, and what it lacks."""

from __future__ import annotations

import numpy as np
import pytest

from tlkit.advice.dataset_statistics import ImageStatistics, SizePolicy, gather
from tlkit.data import dataset


def statistics(**per_class):
    images = sum(per_class.values())
    return ImageStatistics(images, images, per_class, per_class, (0, 0, 0), (0, 0, 0), {})


def test_repeated_images_count_once(pictures):
    found = dataset.read(pictures)
    samples = found.of("train")
    features = np.random.default_rng(0).normal(size=(len(samples), 4)).astype(np.float32)
    features[1] = features[0]
    usable = np.arange(len(samples)) != 2
    counted = gather(found, samples, usable, features)
    assert (counted.images, counted.distinct, counted.classes) == (len(samples) - 1, len(samples) - 2, 3)
    assert sum(counted.distinct_per_class.values()) == counted.distinct
    assert counted.formats == {"PNG": len(samples) - 1}
    assert counted.widths == (48, 48, 48)
    assert 40 <= counted.heights[0] < counted.heights[1] < counted.heights[2] < 52


@pytest.mark.parametrize(
    ("per_class", "large"),
    [({"a": 500, "b": 500}, True), ({"a": 500, "b": 499}, False), ({"a": 900, "b": 99, "c": 99}, False)],
)
def test_a_dataset_is_large_by_its_images_and_by_those_of_its_median_class(per_class, large):
    assert statistics(**per_class).is_large(SizePolicy()) is large


@pytest.mark.parametrize(
    ("per_class", "reasons"),
    [
        ({"a": 10, "b": 10}, []),
        ({"a": 10, "b": 9, "c": 1}, []),
        ({"a": 19, "b": 1}, ["classes with at most one training image: b"]),
        ({"a": 20}, ["there is only one class"]),
        ({"a": 10, "b": 9}, ["19 training images, at least 20 are needed"]),
        (
            {"a": 40, "b": 1, "c": 0, "d": 1, "e": 1},
            [
                "classes with at most one training image: b, c, d and 1 more",
                "half of the classes have at most 1 distinct images, 2 are needed",
            ],
        ),
    ],
)
def test_shortcomings_by_hand(per_class, reasons):
    assert statistics(**per_class).shortcomings(SizePolicy()) == reasons
    if not reasons:
        assert statistics(**per_class).shortcomings(SizePolicy(min_images=21)) != []
