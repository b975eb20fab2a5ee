"""Label issues by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tlkit.audit.labels import suspects


def test_suspects_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.93, 0.07], [0.07, 0.93], [0.4, 0.6], [0.96, 0.04]])
    # Odds of the labels: 1, 0.075, 0.075, 0.67 and 0.042, where 0.08 is the threshold.
    assert suspects(probabilities, np.array([0, 1, 0, 0, 1])) == [(4, 0), (1, 0), (2, 1)]


@given(st.integers(0, 2**32 - 1))
def test_a_classifier_that_agrees_with_every_label_has_no_suspects(seed):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet([1.0] * 3, 30)
    assert suspects(probabilities, probabilities.argmax(axis=1)) == []
