"""Scores against values computed by hand, by brute force, and against what their papers prove of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize

from tests.kit.transferability import leep, nce
from tlkit.advice.scores import h_score, logme

LABELS = np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        ([0, 0, 1, 1], 1.0),  # nothing but the classes varies
        ([0, 1, 0, 1], 0.0),  # the classes have the same mean
        ([0, 1, 1, 2], 0.5),  # variance 1/2, of which the class means 0.5 and 1.5 make 1/4
    ],
)
def test_h_score_by_hand(feature, expected):
    assert h_score(np.array(feature, float)[:, None], LABELS) == pytest.approx(expected)


def test_h_score_of_two_features_by_hand():
    # The first feature is the class, the second is noise uncorrelated with it: 1 + 0.
    assert h_score(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float), LABELS) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([[1, 0], [1, 0], [0, 1], [0, 1]], 0.0),  # the source classes are the classes
        ([[0.5, 0.5]] * 4, np.log(0.5)),  # they tell nothing
        # P(y=0|z=0) = 3/4, P(y=0|z=1) = 1/4: each image expects (3/4)^2 + (1/4)^2 = 5/8
        ([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.25, 0.75]], np.log(5 / 8)),
    ],
)
def test_leep_by_hand(probabilities, expected):
    assert leep(np.array(probabilities, float), LABELS, 2) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([7, 7, 3, 3], 0.0),
        ([7, 7, 7, 7], -np.log(2)),
        ([1, 1, 1, 0], 0.75 * (2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))),
    ],
)
def test_nce_by_hand(source, expected):
    assert nce(np.array(source), LABELS) == pytest.approx(expected)


def evidence(rows, target, alpha, beta):
    """The log evidence of linear regression with prior N(0, 1/alpha) and noise 1/beta: a Gaussian's density."""
    covariance = rows @ rows.T / alpha + np.eye(len(rows)) / beta
    _, logdet = np.linalg.slogdet(covariance)
    return -0.5 * (target @ np.linalg.solve(covariance, target) + logdet + len(rows) * np.log(2 * np.pi))


@pytest.mark.parametrize("shape", [(30, 3), (12, 20)])
def test_logme_is_the_greatest_evidence_found_by_brute_force(shape):
    random = np.random.default_rng(0)
    rows = random.normal(size=shape)
    labels = (rows[:, 0] + 0.5 * random.normal(size=shape[0]) > 0).astype(int)
    best = []
    for label in (0, 1):
        target = (labels == label).astype(float)
        found = minimize(
            lambda logs, target=target: -evidence(rows, target, *np.exp(logs)), [0.0, 0.0], method="Nelder-Mead"
        )
        best.append(-found.fun / len(rows))
    assert logme(rows, labels, 2) == pytest.approx(np.mean(best), abs=2e-3)


features = hnp.arrays(float, (12, 3), elements=st.floats(-5, 5, width=32))
labellings = hnp.arrays(np.int64, 12, elements=st.integers(0, 2))


@given(features, labellings)
def test_the_h_score_lies_between_nothing_and_one_for_each_class_but_one(rows, labels):
    score = h_score(rows, labels)
    assert -1e-6 <= score <= min(len(np.unique(labels)) - 1, 3) + 1e-6


@given(labellings, st.integers(0, 2**32 - 1))
def test_the_h_score_does_not_see_an_invertible_map_of_the_features(labels, seed):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(12, 3))
    turned = rows @ (np.eye(3) + 0.3 * random.uniform(-1, 1, (3, 3)) / 3) + random.normal(size=3)
    assert h_score(turned, labels) == pytest.approx(h_score(rows, labels), abs=1e-6)


@given(labellings, st.integers(0, 2**32 - 1))
def test_leep_and_nce_are_log_likelihoods_and_agree_on_a_classifier_without_doubt(labels, seed):
    random = np.random.default_rng(seed)
    assert leep(random.dirichlet([0.3] * 4, size=12), labels, 3) <= 1e-12
    chosen = random.integers(0, 4, 12)
    assert nce(chosen, labels) <= 1e-12
    assert leep(np.eye(4)[chosen], labels, 3) == pytest.approx(nce(chosen, labels), abs=1e-9)


@given(features, labellings)
def test_logme_is_a_number_whatever_the_features(rows, labels):
    assert np.isfinite(logme(rows, labels, 3))


def test_better_features_score_higher():
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 20)
    centers = random.normal(size=(3, 5))[labels]
    near, far = (centers + noise * random.normal(size=(60, 5)) for noise in (0.3, 3.0))
    assert logme(near, labels, 3) > logme(far, labels, 3)
    assert h_score(near, labels) > h_score(far, labels)
