"""The cut that goes furthest, and the head that is worth it."""

from __future__ import annotations

import numpy as np
import pytest

from tlkit.advice.analysis import StageEvidence
from tlkit.advice.probes import Probe
from tlkit.advice.scenarios import CASES, agreement
from tlkit.advice.selection import HeadEvidence, best_head, best_stage


def stage(name, right, log_loss):
    called = np.arange(20) < right
    probe = Probe(called, called.astype(np.int64), log_loss)
    return StageEvidence(name, 8, probe, probe, 0.0, 0.0)


@pytest.mark.parametrize(
    ("early", "deep", "best"),
    [
        ((15, 0.6), (12, 0.6), "early"),
        ((12, 0.6), (15, 0.6), "deep"),
        ((15, 0.6), (15, 0.8), "early"),  # as often right, and surer
        ((15, 0.6), (15, 0.6), "deep"),  # of equals the deepest
        ((16, 1.2), (15, 0.6), "deep"),  # one image more does not make up for being wide of the mark elsewhere
    ],
)
def test_the_cut_is_where_the_probe_is_right_most_often_and_surest(early, deep, best):
    assert best_stage([stage("early", *early), stage("deep", *deep)]).name == best


def heads(**accuracies):
    return [HeadEvidence("deep", name, accuracy, 0.5, 100, 1.0) for name, accuracy in accuracies.items()]


def test_a_head_is_taken_over_the_preferred_one_only_if_it_is_ahead_by_more_than_the_error():
    assert best_head(heads(logistic=0.80, svm=0.81), "deep").head == "logistic"
    assert best_head(heads(logistic=0.80, svm=0.85), "deep").head == "svm"
    assert best_head(heads(logistic=0.80, svm=0.85), "elsewhere") is None


@pytest.mark.parametrize(
    ("case", "cut", "tunes", "agrees"),
    [
        ((False, "alike"), "deep", False, True),
        ((False, "alike"), "early", False, False),
        ((False, "alike"), "deep", True, False),
        ((False, "unlike"), "early", False, True),
        ((False, "unlike"), "deep", False, False),
        ((True, "unlike"), "deep", True, True),
        ((True, "alike"), "deep", False, False),
    ],
)
def test_the_evidence_agrees_with_the_rule_or_does_not_and_the_words_say_which(case, cut, tunes, agrees):
    found, said = agreement(CASES[case], cut=cut, deepest="deep", tunes=tunes, room=0.1)
    assert found is agrees
    assert ("does not agree" in said) is not agrees
