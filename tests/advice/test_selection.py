"""Selection of the cut and the head."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tlkit_standard.heads.linear import Logistic, NearestMean

from tlkit.advice.backbone_analysis import StageEvidence
from tlkit.advice.probes import Probe
from tlkit.advice.selection import HeadEvidence, best_cut, best_head, best_stage, compare_heads, cross_validated
from tlkit.errors import TlkitWarning
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


def test_the_first_head_has_as_much_weight_as_the_probe_where_it_was_compared():
    """The best stages of the probe alone; another head of theirs says nothing of the cut."""
    stages = [stage("early", 15, 0.6), stage("middle", 14, 0.6), stage("deep", 13, 0.6)]
    found = [
        HeadEvidence(name, "logistic", accuracy, 0.5, 20, 1.0) for name, accuracy in (("early", 0.5), ("deep", 0.8))
    ]
    other = HeadEvidence("early", "svm", 0.99, 0.1, 20, 1.0)
    assert best_stage(stages).name == "early"
    assert best_stage(stages, [*found, other]).name == "deep"
    assert best_stage(stages, found[:1]).name == "early"


def test_the_first_head_is_compared_at_the_best_stages_and_others_at_the_best_of_these():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    shifts = {"one": 0.0, "two": 1.0, "three": 3.0, "four": 0.5}
    features = np.concatenate([random.normal(size=(60, 3)) + labels[:, None] * by for by in shifts.values()], axis=1)
    analysis = SimpleNamespace(
        features=Features(features.astype(np.float32), np.ones(60, bool), {}, 0, stages=tuple(shifts), widths=(3,) * 4),
        trunk=SimpleNamespace(names=list(shifts)),
        stages=[stage(name, count, 0.6) for name, count in zip(shifts, (2, 18, 17, 16), strict=True)],
    )
    head = Logistic(c=1.0, power=1.0, l2=False)
    found = compare_heads(analysis, [NearestMean(), head], labels, DatasetStatistics(60, 2, 30, 30), 0, most=40)
    assert [(each.head, each.stage) for each in found] == [
        ("logistic", "two"),
        ("logistic", "three"),
        ("logistic", "four"),
        ("logistic", "two+three"),
        ("nearest-mean", "three"),
    ]
    assert {each.images for each in found} == {40}


def test_the_two_best_stages_are_joined_unless_one_is_clearly_better():
    stages = [stage("early", 15, 0.6), stage("deep", 16, 0.6)]
    found = [HeadEvidence(name, "logistic", 0.8, 0.5, 20, 1.0) for name in ("early", "deep")]
    other = HeadEvidence("deep", "svm", 0.99, 0.1, 20, 1.0)
    assert best_cut(stages) == best_cut(stages, [*found, other]) == "deep"
    both = [HeadEvidence("early+deep", "logistic", 0.8, log_loss, 20, 1.0) for log_loss in (0.54, 0.57)]
    assert [best_cut(stages, [*found, each]) for each in both] == ["early+deep", "deep"]


def heads(**accuracies):
    return [HeadEvidence("deep", name, accuracy, 0.5, 100, 1.0) for name, accuracy in accuracies.items()]


def test_the_default_head_is_kept_unless_another_is_better_by_more_than_the_error():
    assert best_head(heads(logistic=0.80, svm=0.84), "deep").head == "logistic"
    assert best_head(heads(logistic=0.80, svm=0.87), "deep").head == "svm"
    assert best_head(heads(logistic=0.80, svm=0.87), "elsewhere") is None


def test_class_weights_are_tried_where_classes_are_imbalanced():
    """A head that has them wins where they help the balanced accuracy, and is named with its option."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [190, 24])
    features = random.normal(size=(214, 4)).astype(np.float32)
    features[:, 0] += 1.5 * labels
    analysis = SimpleNamespace(
        features=Features(features, np.ones(214, bool), {}, 0, stages=("deep",), widths=(4,)),
        trunk=SimpleNamespace(names=["deep"]),
        stages=[stage("deep", 15, 0.6)],
    )
    head = Logistic(c=1.0, power=1.0, l2=False)
    found = compare_heads(analysis, [head], labels, DatasetStatistics(214, 2, 24, 190), 0, most=300)
    assert [dict(each.settings) for each in found] == [{}, {"class_weight": "balanced"}]
    plain, weighted = (each.balanced_accuracy for each in found)
    assert weighted > plain + 0.05
    assert best_head(found, "deep") is found[1]
    assert found[1].name == "logistic, class_weight balanced"
    assert found[0].images == round(4 / (1 / 190 + 1 / 24))
    even = compare_heads(analysis, [head], labels, DatasetStatistics(214, 2, 107, 107), 0, most=300)
    assert len(even) == 1


def test_heads_that_fail_are_left_out_and_named():
    def fail(*_args):
        raise KeyError("x")

    class Solving(NearestMean):
        name, solve = "solving", fail

    class Proposing(NearestMean):
        name, candidates = "proposing", fail

    labels = np.arange(20) % 2
    features = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32) + labels[:, None]
    analysis = SimpleNamespace(
        features=Features(features.astype(np.float32), np.ones(20, bool), {}, 0, stages=("deep",), widths=(3,)),
        trunk=SimpleNamespace(names=["deep"]),
        stages=[stage("deep", 15, 0.6)],
    )
    given = [Solving(), Proposing(), NearestMean()]
    with pytest.warns(TlkitWarning) as warned:
        found = compare_heads(analysis, given, labels, DatasetStatistics(20, 2, 10, 10), 0, most=20, cut="deep")
    assert [each.head for each in found] == ["proposing", "nearest-mean"]
    assert sorted(str(each.message) for each in warned) == [
        "head 'proposing' failed in candidates(): KeyError: 'x'; it is left out",
        "head 'solving' failed in solve(): KeyError: 'x'; it is left out",
    ]


def test_heads_are_compared_by_what_the_contract_names():
    assert cross_validated({"cv_balanced_accuracy": 0.8, "cv_log_loss": 1}) == (0.8, 1.0)
    assert cross_validated({"cv_accuracy": 0.7, "cv_log_loss": 0.5, "folds": 5}) == (0.7, 0.5)
    for wrong in ({}, {"cv_accuracy": 0.7}, {"cv_log_loss": 0.5}, {"cv_accuracy": 70, "cv_log_loss": 0.5}):
        assert cross_validated(wrong) is None
    assert cross_validated({"cv_accuracy": "0.7", "cv_log_loss": 0.5}) is None
