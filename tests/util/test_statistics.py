"""Paired comparisons, softmax and log loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tlkit.util.statistics import log_loss, log_sum_exp, paired_difference, power_normalize, softmax

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
    found = paired_difference(one, other)
    assert found.difference == pytest.approx(8 / 20)
    assert found.standard_error == pytest.approx(math.sqrt(10) / 20)
    assert found.exceeds_error
    assert not paired_difference(other, one).exceeds_error
    assert not paired_difference(one, one).exceeds_error


def test_rows_have_norm_one_after_square_roots() -> None:
    assert power_normalize(np.array([[9.0, 16.0]])) == pytest.approx(np.array([[0.6, 0.8]]))
    assert power_normalize(np.array([[-3.0, 4.0]])) == pytest.approx(np.array([[-0.6, 0.8]]))
    assert power_normalize(np.zeros((1, 2))).tolist() == [[0.0, 0.0]]
