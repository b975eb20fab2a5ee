"""Selection of the cut and the head."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tlkit_standard.heads.linear import Logistic

from tlkit.advice.backbone_analysis import StageEvidence
from tlkit.advice.probes import Probe
from tlkit.advice.selection import HeadEvidence, best_head, best_stage, compare_heads
from tlkit.plugin.contract import DatasetStatistics
from tlkit.runtime.features import Features


def stage(name, count, log_loss):
    correct = np.arange(20) < count
    probe = Probe(np.ones(20, np.int64), correct.astype(np.int64), log_loss)
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


def test_class_weights_are_tried_where_classes_are_imbalanced():
    """A head that has them wins where they help the balanced accuracy, and is named with its option."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [95, 12])
    features = random.normal(size=(107, 4)).astype(np.float32)
    features[:, 0] += 1.5 * labels
    analysis = SimpleNamespace(
        features=Features(features, np.ones(107, bool), {}, 0, widths=(4,)), trunk=SimpleNamespace(names=["deep"])
    )
    head = Logistic(c=1.0, power=1.0, l2=False)
    found = compare_heads(analysis, "deep", [head], labels, DatasetStatistics(107, 2, 12, 95), 0)
    assert [dict(each.settings) for each in found] == [{}, {"class_weight": "balanced"}]
    plain, weighted = (each.balanced_accuracy for each in found)
    assert weighted > plain + 0.05
    assert best_head(found, "deep") is found[1]
    assert found[1].name == "logistic, class_weight balanced"
    assert found[0].images == round(4 / (1 / 95 + 1 / 12))
    even = compare_heads(analysis, "deep", [head], labels, DatasetStatistics(107, 2, 53, 54), 0)
    assert len(even) == 1
