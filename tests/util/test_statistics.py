"""Paired comparisons, softmax and log loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tlkit.util.statistics import (
    balanced_interval,
    class_shares,
    effective_images,
    log_loss,
    log_sum_exp,
    paired_difference,
    power_normalize,
    softmax,
    wilson,
)

LOGITS = np.random.default_rng(0).normal(0, 30, (20, 4)).astype(np.float32)


def test_softmax_and_log_sum_exp_are_those_of_pytorch() -> None:
    given = torch.from_numpy(LOGITS)
    assert softmax(LOGITS) == pytest.approx(given.softmax(1).numpy(), abs=1e-6)
    assert log_sum_exp(LOGITS) == pytest.approx(given.logsumexp(1).numpy(), rel=1e-6)


def test_large_logits_do_not_overflow() -> None:
    huge = np.array([[1e4, 0.0]], np.float32)
    assert softmax(huge).tolist() == [[1.0, 0.0]]
    assert log_sum_exp(huge).tolist() == [1e4]


def test_log_loss_is_cross_entropy() -> None:
    labels = np.arange(20) % 4
    assert log_loss(LOGITS, labels) == pytest.approx(
        F.cross_entropy(torch.from_numpy(LOGITS), torch.from_numpy(labels))
    )


def test_only_images_that_one_classifier_alone_gets_right_decide() -> None:
    one = np.array([True] * 9 + [False] * 1 + [True] * 10)
    other = np.array([False] * 9 + [True] * 1 + [True] * 10)
    even = np.arange(20) % 2
    found = paired_difference(one, other, even)
    assert found.difference == pytest.approx(8 / 20)
    assert found.standard_error == pytest.approx(math.sqrt(10) / 20)
    assert found.exceeds_error
    assert not paired_difference(other, one, even).exceeds_error
    assert not paired_difference(one, one, even).exceeds_error


def test_rows_have_norm_one_after_square_roots() -> None:
    assert power_normalize(np.array([[9.0, 16.0]])) == pytest.approx(np.array([[0.6, 0.8]]))
    assert power_normalize(np.array([[-3.0, 4.0]])) == pytest.approx(np.array([[-0.6, 0.8]]))
    assert power_normalize(np.zeros((1, 2))).tolist() == [[0.0, 0.0]]


def test_each_class_has_the_same_weight() -> None:
    labels = np.repeat([0, 2], [90, 10])
    one, other = labels == 2, labels == 0
    assert paired_difference(one, other, labels).difference == pytest.approx(0.0)
    assert class_shares(labels)[[0, -1]] == pytest.approx([1 / 180, 1 / 20])
    assert effective_images(labels) == pytest.approx(4 / (1 / 90 + 1 / 10))
    assert effective_images(np.arange(40) % 4) == pytest.approx(40)


def test_the_interval_of_a_mean_of_recalls() -> None:
    """Of one class it is Wilson's; the squared deviations of several are added."""
    assert balanced_interval(np.array([0, 8]), np.array([0, 10])) == pytest.approx(wilson(8, 10))
    low, high = balanced_interval(np.array([95, 0]), np.array([95, 5]))
    assert low == pytest.approx(0.5 - (1 - wilson(95, 95)[0]) / 2)
    assert high == pytest.approx(0.5 + wilson(0, 5)[1] / 2)


def test_a_log_loss_over_classes() -> None:
    logits = np.array([[0.0, 0.0], [0.0, 0.0], [9.0, 0.0]])
    mean = log_loss(logits, [0, 0, 1], class_shares(np.array([0, 0, 1])))
    assert mean == pytest.approx((math.log(2) + log_loss(logits[2:], [1])) / 2)
