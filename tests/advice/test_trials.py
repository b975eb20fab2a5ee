"""Trials, and when a fine-tuned trunk is better."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from tlkit_standard.heads import HEADS
from tlkit_standard.strategies import STRATEGIES

from tests.advice.asking import ask, eager
from tlkit.advice.auto import train_auto
from tlkit.advice.recommendation import FineTuning
from tlkit.advice.run import advise
from tlkit.advice.trials import _epochs, is_better, run_trials
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import Phase, Strategy, option

SAME, CONFIDENT, LESS_CONFIDENT = [0] * 8 + [1] * 8, 0.5, 1.5


@pytest.mark.parametrize(
    ("correct", "log_loss", "domain", "kept"),
    [
        ([1] * 4 + SAME[4:], LESS_CONFIDENT, "similar", True),  # four of sixteen ahead, with a standard error of two
        ([1, *SAME[1:]], LESS_CONFIDENT, "different", False),  # one ahead, with a standard error of one
        ([1, *SAME[1:]], CONFIDENT, "different", True),
        (SAME, CONFIDENT, "unclear", True),
        (SAME, CONFIDENT, "unknown", True),
        (SAME, CONFIDENT, "similar", False),
        (SAME, LESS_CONFIDENT, "different", False),
        (SAME[:12] + [0] * 4, CONFIDENT, "different", False),  # four behind
    ],
)
def test_within_the_error_of_the_accuracy_the_log_loss_decides(pictures, tmp_path, correct, log_loss, domain, kept):
    trained, _ = train_auto(pictures, tmp_path / "run", ask())

    def of(correct, log_loss):
        metrics, truth = replace(trained.metrics, log_loss=log_loss), np.arange(16) % 2
        return replace(trained, correct=np.array(correct, bool), truth=truth, metrics=metrics)

    assert is_better(of(correct, log_loss), of(SAME, 1.0), domain) is kept


def test_a_budget_is_spent_on_trials(pictures):
    advice = advise(pictures, ask(), budget=3600)
    assert [trial["name"].split(" ")[0] for trial in advice.trials] == ["frozen", "partial", "probe-then-tune"]
    assert any(reason.startswith("trials:") for reason in advice.recommendation.reasons)
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


@pytest.mark.parametrize(("budget", "epochs"), [(1000.0, 50), (15.0, 50), (7.0, 7), (1.9, None)])
def test_a_candidate_gets_as_many_epochs_as_fit(pictures, monkeypatch, budget, epochs):
    advice = advise(pictures, ask())
    candidate = FineTuning(Stranger(15), {"epochs": 15})
    monkeypatch.setattr(FineTuning, "seconds", lambda self, *_: float(self.strategy.epochs))
    assert _epochs(advice, ask(), candidate, budget) == epochs
    assert candidate.limited(7) == FineTuning(Stranger(7), {"epochs": 7})
    assert candidate.limited(50) is candidate
