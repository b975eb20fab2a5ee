"""Conditions of fine-tuning, and the text of a recommendation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tests.advice.asking import ask
from tests.advice.test_domain_shift import Plain
from tests.kit.tiny import Tiny
from tlkit.advice.domain_shift import ShiftPolicy
from tlkit.advice.probes import Probe
from tlkit.advice.recommendation import INCONCLUSIVE, RECOMMENDED, Evidence, FineTuningPolicy, Recommendation
from tlkit.advice.run import AdvicePolicy, advise
from tlkit.util.statistics import wilson

ANY = float("inf")
SIMILAR, DIFFERENT = ShiftPolicy(similar_below=ANY), ShiftPolicy(similar_below=-1.0, different_above=-1.0)
UNCLEAR = ShiftPolicy(similar_below=-1.0, different_above=ANY)


@pytest.mark.parametrize(
    ("domain", "backbone", "shift", "min_error", "fine_tunes"),
    [
        ("similar", Tiny, SIMILAR, 1.0, False),
        ("similar", Tiny, SIMILAR, -1.0, True),
        ("unclear", Tiny, UNCLEAR, 1.0, True),
        ("different", Tiny, DIFFERENT, 1.0, True),
        ("unknown", Plain, ShiftPolicy(), 1.0, True),
    ],
)
def test_a_small_similar_dataset_is_fine_tuned_on_only_if_much_can_be_gained(
    pictures, domain, backbone, shift, min_error, fine_tunes
):
    fine_tuning = FineTuningPolicy(min_error=-1.0, min_error_small_similar=min_error)
    request = ask(backbones=[backbone()], policy=AdvicePolicy(shift=shift, fine_tuning=fine_tuning))
    advice = advise(pictures, request)
    recommendation = advice.recommendation
    assert advice.analysis.shift.domain == domain
    assert (recommendation.strategy == "probe-then-tune") is fine_tunes
    assert recommendation.frozen().cut == "second+third"
    assert recommendation.cut == ("second" if fine_tunes else "second+third")


FINE_TUNED = Recommendation(
    RECOMMENDED,
    "tiny",
    "probe-then-tune",
    "third",
    "logistic",
    trainable=2,
    settings={"strategy.epochs": 10},
    learning_rates={"head": 0.003, "third": 0.001},
    lr_decay=0.8,
    scenario="small and different",
    rule="train only a classifier",
    reasons=("a reason",),
    accuracy=(0.8, 1.0),
    seconds=(60.0, 100.0),
    frozen_head="svm",
)


def test_it_prints_the_verdict_and_the_reasons():
    assert str(FINE_TUNED).splitlines() == [
        "RECOMMENDED: probe-then-tune, tiny up to third, logistic head",
        "  2 trainable stages, learning rates: head 0.003, third 0.001, lr_decay 0.8",
        "  expected balanced accuracy 80.0% to 100.0%",
        "  time on this machine 1 min 0 s to 1 min 40 s",
        "  scenario: small and different: train only a classifier",
        "  a reason",
    ]
    inconclusive = Recommendation(INCONCLUSIVE, "tiny", "frozen", "third", "logistic", reasons=("one", "other"))
    assert inconclusive.summary() == "INCONCLUSIVE: one; other"


def test_without_fine_tuning_the_cut_stays_and_the_frozen_head_is_used():
    frozen = FINE_TUNED.frozen()
    assert (frozen.strategy, frozen.cut, frozen.head, frozen.trainable) == ("frozen", "third", "svm", 0)
    assert frozen.arguments() == ["--backbone", "tiny", "--strategy", "frozen", "--cut", "third", "--head", "svm"]
    assert frozen.frozen() is frozen
    assert FINE_TUNED.arguments()[-2:] == ["--set", "strategy.epochs=10"]


@pytest.mark.parametrize("classes", [2, 10])
def test_the_error_of_frozen_features_does_not_depend_on_the_number_of_classes(classes):
    labels = np.arange(1000) % classes
    predicted = np.where(np.arange(1000) < 970, labels, (labels + 1) % classes)
    stage = SimpleNamespace(probe=Probe(labels, predicted), name="third")
    evidence = Evidence(None, True, SimpleNamespace(stages=[stage]), (), None, 0)
    assert evidence.error == pytest.approx(1 - sum(wilson(970, 1000)) / 2)
