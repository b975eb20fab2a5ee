"""Metrics compared with scikit-learn and with values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from tlkit.evaluation.metrics import calibration_error, confusion_lines, reliability, score
from tlkit.util.statistics import wilson


@given(st.integers(2, 6), st.integers(1, 80), st.integers(0, 2**32 - 1))
def test_metrics_are_those_of_scikit_learn(classes, images, seed):
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, images)
    probabilities = random.dirichlet(np.ones(classes), images).astype(np.float32)
    called, scores = probabilities.argmax(1), score(probabilities, truth)
    present = sorted(set(truth))
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(truth, called))
    recalls = metrics.recall_score(truth, called, labels=present, average="macro", zero_division=0)
    assert scores.balanced_accuracy == pytest.approx(recalls)
    f1 = metrics.f1_score(truth, called, labels=present, average="macro", zero_division=0)
    assert scores.macro_f1 == pytest.approx(f1)
    expected = metrics.confusion_matrix(truth, called, labels=range(classes))
    assert np.array_equal(scores.confusion, expected)
    assert scores.interval[0] <= scores.accuracy <= scores.interval[1]
    assert 0 <= scores.ece <= 1


def test_log_loss_is_scikit_learns_and_finite_for_a_confident_mistake():
    probabilities = np.array([[0.7, 0.3], [0.2, 0.8], [0.9, 0.1]], np.float32)
    expected = metrics.log_loss([0, 1, 1], probabilities.astype(np.float64))
    assert score(probabilities, [0, 1, 1]).log_loss == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(score(np.array([[1, 0]], np.float32), [1]).log_loss)


def test_wilsons_interval_is_the_published_one():
    # Newcombe 1998, table I, method 3: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.65, 0.65], np.float32)
    right = np.array([True, True, True, False, True, True])
    # |0.95 - 0.75| over four images and |0.65 - 1| over two.
    assert calibration_error(reliability(confidence, right)) == pytest.approx((4 * 0.2 + 2 * 0.35) / 6, abs=1e-6)


def test_a_confident_and_correct_model_is_calibrated():
    assert score(np.eye(3, dtype=np.float32), [0, 1, 2]).ece == 0


def test_a_confusion_matrix_has_labels_on_both_axes():
    confusion = np.array([[3, 0, 120], [0, 5, 1], [2, 0, 7]])
    assert confusion_lines(confusion, ["ant", "bee", "a rather long label"]) == [
        "confusion matrix (rows: true class, columns: predicted class):",
        "                     ant  bee  a rather lo…  recall",
        "ant                    3    0           120    2.4%",
        "bee                    0    5             1   83.3%",
        "a rather long label    2    0             7   77.8%",
    ]


def test_of_many_classes_the_most_confused_pairs_are_listed():
    confusion = np.diag(np.arange(1, 21))
    confusion[3, 4], confusion[7, 2] = 2, 9
    lines = confusion_lines(confusion, [f"c{number}" for number in range(20)])
    assert lines[0].startswith("lowest recall: c7 47.1%, c3 66.7%, c0 100.0%, ")
    assert lines[2:] == ["  c7 predicted as c2  9", "  c3 predicted as c4  2"]


def test_a_rare_class_that_is_ignored_shows_beside_the_share_of_the_frequent_one():
    ignored = score(np.tile(np.array([[0.9, 0.1]], np.float32), (100, 1)), [0] * 95 + [1] * 5)
    assert (ignored.accuracy, ignored.balanced_accuracy, ignored.majority) == (0.95, 0.5, 0.95)
    assert ignored.recall == [1.0, 0.0]
    assert ignored.to_json()["recall"] == [1.0, 0.0]
    assert "most frequent class 95.0% of the images" in str(ignored).splitlines()
    assert score(np.eye(3, dtype=np.float32)[:2], [0, 1]).recall == [1.0, 1.0, None]


def test_metrics_print_accuracy_with_its_interval():
    text = str(score(np.eye(3, dtype=np.float32), [0, 1, 1]))
    assert text.splitlines()[0] == "accuracy           66.7% (95 % interval 20.8% to 93.9%)"
