"""Phases that can't run are refused, with all problems at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.kit.course import STAGES
from tlkit.errors import UsageError
from tlkit.plugin.contract import Phase
from tlkit.training.config import check_phases


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"epochs": 0}, "has 0 epochs"),
        ({"reinit": 2}, "reinitializes 2 stages and trains 1"),
        ({"trainable": -1}, "trains -1 stages of 3"),
        ({"trainable": 4}, "trains 4 stages of 3"),
        ({"trunk_lr": 0.0}, "has a learning rate of 0"),
        ({"head_lr": float("nan")}, "has a learning rate of nan"),
        ({"lr_decay": 1.5}, "has an lr_decay of 1.5"),
        ({"batch_size": 0}, "has a batch size of 0"),
        ({"optimizer": "adam"}, "has the optimizer 'adam', not adamw or sgd"),
        ({"warmup": 1.0}, "has a warmup of 1"),
        ({"label_smoothing": -0.1}, "has a label smoothing of -0.1"),
        ({"gradient_clipping": -1.0}, "clips gradients to -1"),
        ({"patience": -1}, "has a patience of -1 epochs"),
        ({"randaugment": 31}, "has a randaugment of 31, not from 0 to 30"),
        ({"mixup": -0.1}, "has a mixup of -0.1"),
        ({"cutmix": float("nan")}, "has a cutmix of nan"),
        ({"balance": "fair"}, "has the balance 'fair', not none or weights or sampling"),
        ({"batchnorm": "keep"}, "has the batchnorm 'keep', not freeze or update"),
        ({"ema": 1.0}, "has an ema of 1"),
    ],
)
def test_a_phase_that_makes_no_sense_is_refused(wrong, problem):
    good = Phase(1, 0.1, trunk_lr=0.1, trainable=1)
    check_phases([good], STAGES)
    with pytest.raises(UsageError, match=f"phase 1 {problem}"):
        check_phases([replace(good, **wrong)], STAGES)


def test_all_problems_are_named_at_once():
    with pytest.raises(UsageError, match=r"phase 1 has 0 epochs; phase 2 trains 9 stages of 2"):
        check_phases([Phase(0, 1), Phase(1, 1, trainable=9)], ["a", "b"])


def test_no_phases_are_refused():
    with pytest.raises(UsageError, match="there are no phases"):
        check_phases([], STAGES)
