"""Trials, and when a fine-tuned trunk is better."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tlkit_standard.heads import HEADS
from tlkit_standard.strategies import STRATEGIES

from tests.advice.asking import ask, comparison, eager
from tests.kit.tiny import Line
from tlkit.advice import quick_trial as quick_trials
from tlkit.advice import recommendation, selection, trials
from tlkit.advice.auto import BudgetUsed, train_auto
from tlkit.advice.quick_trial import quick_trial
from tlkit.advice.recommendation import FineTuningPolicy
from tlkit.advice.run import AdvicePolicy, advise
from tlkit.advice.selection import FineTuning
from tlkit.advice.trials import SIMILAR, Trials, _DoesNotFit, _epochs, compared, margin_for, run_trial, run_trials
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import Phase, Strategy, option, silent
from tlkit.training.history import Monitor


def test_a_budget_is_spent_on_trials(pictures):
    advice = advise(pictures, ask(), budget=3600)
    assert [trial["name"].split(" ")[0] for trial in advice.trials] == ["frozen", "partial", "probe-then-tune"]
    decided = [reason for reason in advice.recommendation.reasons if " better than " in reason]
    assert len(decided) == 2
    assert all(0 <= trial["accuracy"] <= 1 for trial in advice.trials)
    assert "trials on the validation images\n" in str(advice)


def test_a_budget_that_is_too_small_changes_nothing_but_a_reason(pictures):
    request = ask()
    before = advise(pictures, request)
    after = run_trials(before, request, budget=1e-6)
    assert after.recommendation.arguments() == before.recommendation.arguments()
    assert "budget is too small" in " ".join(after.recommendation.reasons)


@dataclass(frozen=True)
class Stranger(Strategy):
    """A strategy of another plugin, which trains all stages with a high learning rate."""

    name = "stranger"
    epochs: int = option(1, "epochs")

    def phases(self, stages, info):
        return (Phase(self.epochs, 0.05, trunk_lr=0.02, trainable=len(stages), batch_size=8),)

    def candidates(self, info):
        return (replace(self, epochs=15),)


@pytest.fixture
def stripes(tmp_path):
    """Two classes of weak stripes in strong noise: frozen features hardly tell them apart."""
    random, pixels = np.random.default_rng(0), np.arange(36)
    for label in ("lying", "standing"):
        (tmp_path / "stripes" / label).mkdir(parents=True)
        for number in range(24):
            wave = 20 * np.sign(np.sin(np.pi * (pixels + random.integers(4)) / 2 + 0.1))[:, None]
            image = 128 + (wave if label == "lying" else wave.T)[..., None] + random.normal(0, 50, (36, 36, 3))
            pixel_values = np.clip(image, 0, 255).astype(np.uint8)
            Image.fromarray(pixel_values).save(tmp_path / "stripes" / label / f"{number:02}.png")
    return tmp_path / "stripes"


def test_a_strategy_of_another_plugin_that_is_better_on_its_data_wins(stripes, tmp_path):
    logistic = [head for head in HEADS if head.name == "logistic"]
    request = ask(heads=logistic, strategies=[*STRATEGIES, Stranger()], policy=eager(50))
    trained, advice = train_auto(stripes, tmp_path / "run", request, budget=3600)
    *others, best = advice.trials[:4]
    assert best["name"].startswith("stranger")
    assert best["accuracy"] > max(trial["accuracy"] for trial in others) + 0.1
    assert trained.strategy == advice.recommendation.strategy == "stranger"
    assert advice.recommendation.settings == {"strategy.epochs": 15}
    record = open_bundle(tmp_path / "run").record
    assert (record.strategy.name, record.strategy.options) == ("stranger", {"epochs": 15})


def test_a_quick_trial_compares_a_few_trainable_stages_with_frozen_features(stripes, tmp_path, monkeypatch):
    """A trial finds that training tells apart what frozen features do not, on images and on their disturbed copies."""
    request = ask(heads=[head for head in HEADS if head.name == "logistic"])
    advice = advise(stripes, request)

    def tried(name, epochs, cut="third"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(quick_trials, "FEW_EPOCHS", epochs)
        return quick_trial(advice, request, FineTuning(Stranger(epochs)), cut, tmp_path / name)

    comparison = tried("long", 40)
    assert comparison.images == advice.statistics.images
    assert comparison.accuracy[1] > comparison.accuracy[0] + 0.1
    assert comparison.better
    assert tried("short", 2) == tried("same", 2)
    assert tried("none", 2, cut="first") is None


def test_a_quick_trial_ends_in_the_middle_of_a_training_where_the_budget_does(stripes, tmp_path, monkeypatch):
    request, steps = ask(heads=[head for head in HEADS if head.name == "logistic"]), []
    advice = advise(stripes, request)
    monkeypatch.setattr(Monitor, "step", lambda *_: steps.append(1))

    def progress(what, _total):
        def tick(*_):
            if what.startswith("trial with"):
                raise BudgetUsed

        return tick

    with pytest.raises(BudgetUsed):
        quick_trial(advice, request, FineTuning(Stranger(2)), "third", tmp_path, progress)
    assert not steps


def test_two_bundles_are_compared_on_the_same_images_and_copies(pictures, tmp_path):
    trained, advice = train_auto(pictures, tmp_path / "run", ask())
    val = advice.dataset.of("val")
    same = compared(ask(), val, trained, trained)
    assert (same.images, same.errors) == (len(val), (0, 0))
    assert same.accuracy == pytest.approx((trained.metrics.balanced_accuracy,) * 2)
    assert not same.better


@pytest.mark.parametrize(("left", "head"), [(29.0, "logistic"), (math.inf, "line")])
def test_no_average_is_trained_without_time_or_under_a_head_that_is_not_solved(
    pictures, tmp_path, monkeypatch, left, head
):
    monkeypatch.setattr(trials, "compared", lambda *_, **__: comparison(better=True))
    heads = [each for each in (*HEADS, Line()) if each.name == head]
    request, tried = ask(heads=heads, policy=eager(1)), []
    advice = advise(pictures, request)
    assert advice.recommendation.trainable
    trial = run_trial(pictures, tmp_path / "one", request, advice.recommendation, silent, None)
    monkeypatch.setattr(trials, "run_trial", lambda *args: tried.append(args))
    assert Trials(request, lambda: left).average(advice, replace(trial, seconds=10.0)) is advice
    assert not tried


@pytest.mark.parametrize(("budget", "epochs"), [(1000.0, 50), (15.0, 50), (7.0, 7), (1.9, None)])
def test_a_candidate_gets_as_many_epochs_as_fit(pictures, monkeypatch, budget, epochs):
    advice = advise(pictures, ask())
    candidate = FineTuning(Stranger(15), {"epochs": 15})
    monkeypatch.setattr(FineTuning, "seconds", lambda self, *_: (0.0, float(self.strategy.epochs)))
    if epochs is None:
        with pytest.raises(_DoesNotFit):
            _epochs(advice, ask(), candidate, "third", budget)
    else:
        assert _epochs(advice, ask(), candidate, "third", budget) == epochs
    assert candidate.limited(7) == FineTuning(Stranger(7), {"epochs": 7})
    assert candidate.limited(50) is candidate


def test_a_quick_trial_is_run_on_cached_activations_and_leaves_nothing(stripes, tmp_path, monkeypatch):
    strategies = [each for each in STRATEGIES if each.name == "frozen"] + [Stranger()]
    heads = [head for head in HEADS if head.name == "logistic"]
    monkeypatch.setattr(selection, "best_stage", lambda stages, _heads=(): stages[-1])
    monkeypatch.setattr(recommendation, "best_stage", lambda stages, _heads=(): stages[-1])
    request = ask(heads=heads, strategies=strategies, policy=AdvicePolicy(fine_tuning=FineTuningPolicy(epochs=3)))
    trained, advice = train_auto(stripes, tmp_path / "run", request)
    assert trained.strategy in ("stranger", "frozen")
    assert "held-out images" in " ".join(advice.recommendation.reasons)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("domain", "error", "margin"),
    [("similar", 0.05, 1.0), ("similar", 0.3, 0.0), ("unclear", 0.05, 0.0), ("different", 0.3, 0.0)],
)
def test_a_gain_must_exceed_its_error_where_little_is_left_of_similar_data(domain, error, margin):
    evidence = SimpleNamespace(error=error, analysis=SimpleNamespace(shift=SimpleNamespace(domain=domain)))
    assert margin_for(evidence, ask(), SIMILAR) == margin
