"""The four transfer-learning scenarios and their agreement with the evidence."""

from __future__ import annotations

import pytest

from tlkit.advice.scenarios import SCENARIOS, agreement, find_scenario


@pytest.mark.parametrize(
    ("scenario", "cut", "fine_tunes", "agrees"),
    [
        ((False, "similar"), "deep", False, True),
        ((False, "similar"), "early", False, False),
        ((False, "similar"), "deep", True, False),
        ((False, "different"), "early", False, True),
        ((False, "different"), "deep", False, False),
        ((True, "different"), "deep", True, True),
        ((True, "similar"), "deep", False, False),
    ],
)
def test_the_reason_says_if_the_evidence_agrees_with_the_rule(scenario, cut, fine_tunes, agrees):
    found, reason = agreement(SCENARIOS[scenario], cut=cut, deepest="deep", fine_tunes=fine_tunes, error=0.1)
    assert found is agrees
    assert ("does not agree" in reason) is not agrees


def test_without_a_clear_domain_no_scenario_applies():
    assert find_scenario(True, "unclear") is find_scenario(False, "unknown") is None
    assert find_scenario(True, "different").name == "large and different"
