"""Strategies ask for the phases that they are named for."""

from __future__ import annotations

import pytest
from tlkit_standard.strategies import STRATEGIES

from tlkit.plugin.contract import DatasetStatistics

BY_NAME = {strategy.name: strategy for strategy in STRATEGIES}


@pytest.mark.parametrize(
    ("name", "trainable", "reinit"),
    [
        ("frozen", [0], 0),
        ("full", [3], 0),
        ("partial", [2], 0),
        ("probe-then-tune", [0, 3], 0),
        ("gradual", [0, 1, 2, 3], 0),
        ("replace", [1], 1),
        ("scratch", [3], 3),
    ],
)
def test_trainable_and_reinitialized_stages(name, trainable, reinit):
    phases = BY_NAME[name].phases(("first", "second", "third"), DatasetStatistics(100, 2, 50, 50))
    assert [phase.trainable for phase in phases] == trainable
    assert {phase.reinit for phase in phases} == {reinit}
    if any(trainable) and not reinit:
        assert all(phase.trunk_lr < phase.head_lr for phase in phases)
