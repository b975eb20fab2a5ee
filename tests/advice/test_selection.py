"""Selection of the cut and the head."""

from __future__ import annotations

import numpy as np
import pytest

from tlkit.advice.backbone_analysis import StageEvidence
from tlkit.advice.probes import Probe
from tlkit.advice.selection import HeadEvidence, best_head, best_stage


def stage(name, count, log_loss):
    correct = np.arange(20) < count
    probe = Probe(correct, correct.astype(np.int64), log_loss)
    return StageEvidence(name, 8, probe, probe, 0.0, 0.0)


@pytest.mark.parametrize(
    ("early", "deep", "best"),
    [
        ((15, 0.6), (12, 0.6), "early"),
        ((12, 0.6), (15, 0.6), "deep"),
        ((15, 0.6), (15, 0.8), "early"),  # as accurate, and more confident
        ((15, 0.6), (15, 0.6), "deep"),  # of equals the deepest
        ((16, 1.2), (15, 0.6), "deep"),  # one more correct image does not make up for a worse log loss
    ],
)
def test_the_cut_has_the_best_accuracy_less_half_the_log_loss(early, deep, best):
    assert best_stage([stage("early", *early), stage("deep", *deep)]).name == best


def heads(**accuracies):
    return [HeadEvidence("deep", name, accuracy, 0.5, 100, 1.0) for name, accuracy in accuracies.items()]


def test_the_default_head_is_kept_unless_another_is_better_by_more_than_the_error():
    assert best_head(heads(logistic=0.80, svm=0.81), "deep").head == "logistic"
    assert best_head(heads(logistic=0.80, svm=0.85), "deep").head == "svm"
    assert best_head(heads(logistic=0.80, svm=0.85), "elsewhere") is None
