"""Leaving one out in closed form is leaving one out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss

from tlkit.advice.probes import SHARPNESS, STRENGTHS, Probe, nearest_mean, ridge
from tlkit.advice.scores import one_hot
from tlkit.util.statistics import power_normalize


def blobs(images, width, classes, seed=0, spread=1.0):
    random = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    rows = 1.5 * random.normal(size=(classes, width))[labels] + spread * random.normal(size=(images, width))
    return rows.astype(np.float32), labels


@pytest.mark.parametrize(("images", "width"), [(24, 4), (15, 40)])
def test_ridge_predicts_each_image_as_a_fit_to_the_others_does(images, width):
    features, labels = blobs(images, width, 3)
    rows, targets = power_normalize(features), one_hot(labels, 3)
    total = ((rows - rows.mean(axis=0)) ** 2).sum()
    best, scores = np.inf, None
    for strength in STRENGTHS:
        predicted = np.stack(
            [
                Ridge(alpha=strength * total)
                .fit(np.delete(rows, image, 0), np.delete(targets, image, 0))
                .predict(rows[image : image + 1])[0]
                for image in range(images)
            ]
        )
        if (error := ((predicted - targets) ** 2).mean()) < best:
            best, scores = error, predicted
    probe = ridge(features, labels, 3)
    assert np.array_equal(probe.predicted, scores.argmax(axis=1))
    assert probe.correct.tolist() == (probe.predicted == labels).tolist()
    losses = [log_loss(labels, softmax(sharpness * scores, axis=1)) for sharpness in SHARPNESS]
    assert probe.log_loss == pytest.approx(min(losses))


def test_the_nearest_mean_is_without_the_image_itself():
    features, labels = blobs(21, 5, 3, spread=2.0)
    rows = power_normalize(features)
    called = []
    for image in range(len(rows)):
        others = np.arange(len(rows)) != image
        means = np.stack([rows[others & (labels == label)].mean(axis=0) for label in range(3)])
        called.append(((rows[image] - means) ** 2).sum(axis=1).argmin())
    assert np.array_equal(nearest_mean(features, labels, 3).predicted, called)


def test_a_class_of_one_image_is_never_predicted():
    features, labels = blobs(13, 4, 2)
    labels = np.where(np.arange(13) == 12, 2, labels)
    assert not nearest_mean(features, labels, 3).correct[12]


def test_the_interval_is_around_the_accuracy():
    probe = ridge(*blobs(40, 6, 2, spread=2.0), 2)
    low, high = probe.interval
    assert 0.0 <= low <= probe.balanced_accuracy <= high <= 1.0


@given(st.integers(2, 5), st.integers(0, 1000))
def test_labels_that_have_nothing_to_do_with_the_features_are_not_predicted(classes, seed):
    random = np.random.default_rng(seed)
    features = random.normal(size=(200, 3)).astype(np.float32)
    labels = random.integers(0, classes, 200)
    assert ridge(features, labels, classes).balanced_accuracy < 1 / classes + 0.25


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_the_scale_of_the_features_changes_nothing(seed, scale):
    features, labels = blobs(20, 4, 2, seed)
    assert np.array_equal(
        ridge(features, labels, 2).predicted, ridge(features * np.float32(scale), labels, 2).predicted
    )


def test_features_that_do_not_vary_are_no_bug():
    probe = ridge(np.ones((12, 4), np.float32), np.arange(12) % 2, 2)
    assert 0.0 <= probe.balanced_accuracy <= 1.0


def test_leaving_groups_out_is_refitting_without_them():
    """Both probes against fits from scratch, at the penalty that the ridge has chosen."""
    features, labels = blobs(24, 5, 3, spread=1.5)
    groups = np.arange(24) // 3
    rows = power_normalize(features)
    for group in range(8):
        held, rest = groups == group, groups != group
        means = np.stack([rows[rest & (labels == label)].mean(axis=0) for label in range(3)])
        nearest = ((rows[held][:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
        assert nearest_mean(features, labels, 3, groups).predicted[held].tolist() == nearest.tolist()
    centered, hot = rows - rows.mean(axis=0), np.eye(3)[labels]
    predictions = []
    for strength in STRENGTHS:
        values = np.empty((24, 3))
        for group in range(8):
            held, rest = groups == group, groups != group
            design = np.column_stack([centered, np.ones(24)])
            penalty = np.diag([*[strength * (centered**2).sum()] * 5, 0.0])
            weights = np.linalg.solve(design[rest].T @ design[rest] + penalty, design[rest].T @ hot[rest])
            values[held] = design[held] @ weights
        predictions.append((((values - hot) ** 2).mean(), values.argmax(axis=1)))
    best = min(predictions, key=lambda each: each[0])[1]
    assert ridge(features, labels, 3, groups).predicted.tolist() == best.tolist()


def test_copies_in_groups_give_nothing_away():
    """Noise of which each image is there five times: known by its copies, unless these are left out together."""
    random = np.random.default_rng(0)
    features, labels, groups = (
        np.repeat(random.normal(size=(30, 200)), 5, 0),
        np.arange(150) // 5 % 2,
        np.arange(150) // 5,
    )
    for probe in (ridge, nearest_mean):
        assert probe(features, labels, 2).balanced_accuracy > 0.9
        assert probe(features, labels, 2, groups).balanced_accuracy < 0.75


def test_a_probe_that_ignores_a_rare_class_is_no_better_than_chance():
    labels = np.repeat([0, 1], [95, 5])
    probe = Probe(labels, np.zeros(100, np.int64))
    assert probe.balanced_accuracy == pytest.approx(0.5)
    low, high = probe.interval
    assert low < 0.5 < high < 0.75
