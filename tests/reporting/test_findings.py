"""Planted faults stand out, and nothing else does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tests.reporting.planted import LABELS, images
from tlkit.data.decoding import Header
from tlkit.evaluation.metrics import score
from tlkit.reporting.confusions import mistakes, ordered, pairs
from tlkit.reporting.doubts import doubts
from tlkit.reporting.findings import findings, next_step
from tlkit.reporting.selective import selective
from tlkit.reporting.slices import slices
from tlkit.runtime.reference import Reference


def found(seen, **more):
    metrics = score(seen.probabilities, seen.truth)
    facts = {
        "trained_on": None,
        "doubts": doubts(seen, mistakes(seen), 3),
        "slices": slices(seen, LABELS, None, {}),
        "pairs": pairs(seen, metrics.confusion),
        "nearest_mean": None,
    }
    return findings(SimpleNamespace(images=seen, metrics=metrics, labels=LABELS, **facts | more))


def test_without_a_fault_nothing_stands_out():
    seen = images(confidence=0.99)
    assert found(seen) == []
    assert "deploy it" in next_step([], score(seen.probabilities, seen.truth))


def test_wrong_labels_stand_out_and_are_named():
    wrong = np.arange(0, 300, 20)  # 5 %
    labels = np.arange(300) % 3
    labels[wrong] = (labels[wrong] + 1) % 3
    seen = images(labels=labels, confidence=0.95)
    doubted = doubts(seen, mistakes(seen), 3)
    assert set(doubted.likely) <= set(wrong.tolist())
    assert len(doubted.likely) >= 10
    assert all(label == row % 3 for row, label in doubted.likely.items())
    first = found(seen, doubts=doubted)[0]
    assert first.kind == "labels"
    assert f"{len(doubted.likely)} of 300 labels look wrong" in first.what


def test_a_dark_slice_stands_out():
    brightness = np.random.default_rng(1).uniform(0.4, 0.8, 300)
    dark = np.arange(5, 300, 10)
    brightness[dark] = 0.05 + dark / 10_000
    predicted = np.arange(300) % 3
    predicted[dark] = np.where(dark % 20 == 5, (predicted[dark] + 1) % 3, predicted[dark])  # half of them
    kinds = {each.kind: each for each in found(images(brightness=brightness, predicted=predicted, confidence=0.95))}
    assert "slice" in kinds
    assert "brightness 0.0" in kinds["slice"].what
    assert "50.0% of 30 images" in kinds["slice"].what


def test_a_shortcut_stands_out():
    headers = [Header("PNG" if row % 3 == 0 else "JPEG", 64, 48, "RGB", "none") for row in range(300)]
    first = found(images(headers=headers, confidence=0.99))[0]
    assert first.kind == "shortcut"
    assert "file format" in first.what


def test_images_that_were_trained_on_stand_out_first():
    first = found(images(confidence=0.99), trained_on=7)[0]
    assert (first.kind, "7 of these 300" in first.what) == ("leakage", True)


def test_a_model_that_is_too_sure_or_no_better_than_a_constant_is_told():
    predicted = np.where(np.arange(300) % 5 < 3, np.arange(300) % 3, 0)
    assert "calibration" in {each.kind for each in found(images(predicted=predicted, confidence=0.99))}
    constant = found(images(predicted=np.zeros(300, int), confidence=0.4))
    assert "always predicting" in next(each.what for each in constant if each.kind == "baseline")
    better = found(images(predicted=predicted), nearest_mean=1.0)
    assert any("nearest class mean" in each.what for each in better)


def test_intervals_of_slices_are_corrected_for_their_number():
    random = np.random.default_rng(2)
    accused = 0
    for _ in range(20):
        predicted = np.where(random.random(300) < 0.8, np.arange(300) % 3, (np.arange(300) + 1) % 3)
        columns = {f"c{i}": {f"{row}.jpg": str(random.integers(2)) for row in range(300)} for i in range(10)}
        accused += any(each.worse for each in slices(images(predicted=predicted), LABELS, None, columns))
    assert accused <= 3  # of twenty; uncorrected about half of them would be


def test_a_column_of_the_table_is_a_slice():
    predicted = np.where(np.arange(300) % 10 == 0, (np.arange(300) + 1) % 3, np.arange(300) % 3)
    camera = {f"{row}.jpg": "old" if row % 10 == 0 else "new" for row in range(300)}
    worst = slices(images(predicted=predicted), LABELS, None, {"camera": camera})[0]
    assert (worst.name, worst.value, worst.images, worst.accuracy, worst.worse) == ("camera", "old", 30, 0.0, True)


def test_thresholds_reach_the_accuracy_that_is_wished_for():
    seen = images(100)
    seen.probabilities[:] = 0
    confidence = np.linspace(1, 0.5, 100, dtype=np.float32)
    seen.probabilities[np.arange(100), np.where(np.arange(100) < 90, seen.truth, (seen.truth + 1) % 3)] = confidence
    by_wish = {each.accuracy: each for each in selective(seen).thresholds}
    assert by_wish[0.99].coverage == pytest.approx(0.9)
    assert by_wish[0.99].confidence == confidence[89]
    assert by_wish[0.9].coverage == 1.0
    assert selective(seen).curve[-1].tolist() == pytest.approx([1.0, 0.9])


def test_classes_that_are_confused_are_beside_each_other():
    confusion = np.diag([50] * 6)
    for i, j in ((0, 5), (1, 3), (2, 4)):
        confusion[i, j] = confusion[j, i] = 9
    order = ordered(confusion)
    assert sorted(order) == list(range(6))
    assert all(abs(order.index(i) - order.index(j)) == 1 for i, j in ((0, 5), (1, 3), (2, 4)))


def test_the_nearest_training_images_and_the_nearest_mean():
    seen = images(60)
    reference = Reference(seen.samples, seen.features)
    assert reference.nearest(seen.features[7])[0].name == "7.jpg"
    assert reference.distances(seen.features) == pytest.approx(np.zeros(60), abs=1e-5)
    assert reference.nearest_mean(seen.features, seen.truth) == 1.0
