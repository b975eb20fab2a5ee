"""Trials, and when a fine-tuned trunk is better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.advice.asking import ask
from tlkit.advice.auto import train_auto
from tlkit.advice.run import advise
from tlkit.advice.trials import is_better, run_trials

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
        return replace(trained, correct=np.array(correct, bool), metrics=replace(trained.metrics, log_loss=log_loss))

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
