"""Strategies with one thing wrong each, by the check that has to find it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.conformance.broken.registry import Registry
from tlkit.plugin.contract import Phase, Strategy

BROKEN = Registry()
breaks = BROKEN.breaks


@dataclass(frozen=True)
class Plan(Strategy):
    name = "plan"
    phase = Phase(3, 1e-3)

    def phases(self, stages, info):
        return (self.phase,)


@breaks("answers", r"for 1 stages and DatasetStatistics\(images=2, .*it returns \(\)")
class Idle(Plan):
    def phases(self, stages, info):
        return ()


@breaks("cut-is-a-stage", "it cuts at 'stage3'")
class Cutting(Plan):
    def cut(self, stages, info):
        return "stage3"


@breaks("pure", "it says one thing and then another")
class Wavering(Plan):
    asked: list[int] = []  # noqa: RUF012

    def phases(self, stages, info):
        self.asked.append(1)
        return (Phase(len(self.asked), 1e-3),)


@breaks("leaves-its-arguments-alone", r"it changes its stages to \['stem', 'body'\]")
class Popping(Plan):
    def phases(self, stages, info):
        if isinstance(stages, list):
            stages.pop()
        return super().phases(stages, info)


@breaks("epochs-are-positive", "a phase has 0 epochs")
class Hasty(Plan):
    def phases(self, stages, info):
        return (Phase(min(10, 1_000_000 // info.images), 1e-3),)


@breaks("learning-rates-are-positive", "a phase has a learning rate of 0")
class Rateless(Plan):
    phase = Phase(3, 1e-3, trainable=1)


@breaks("trainable-is-in-range", "for 1 stages .*, a phase trains 2 stages of 1; bound it by")
class Restless(Plan):
    phase = Phase(3, 1e-3, 1e-4, trainable=2)


@breaks("reinit-is-trainable", "a phase reinitializes 2 stages and trains 1")
class Forgetful(Plan):
    phase = Phase(3, 1e-3, 1e-4, trainable=1, reinit=2)


@breaks("lr-decay-is-a-factor", "a phase has an lr_decay of 1.5")
class Growing(Plan):
    phase = Phase(3, 1e-3, lr_decay=1.5)
