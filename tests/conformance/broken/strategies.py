"""Strategies with one thing wrong each, by the check that has to find it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.conformance.broken.registry import Registry
from tlkit.plugin.contract import Phase, Strategy, option

BROKEN = Registry()
breaks = BROKEN.breaks


@dataclass(frozen=True, slots=True)
class Longer(Phase):
    layers: int = 2


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


@dataclass(frozen=True)
class Dreamy(Phase):
    """A phase with a field that training does not know."""

    dropout: float = 0.5


@breaks("asks-for-known-fields", "a phase asks for dropout, which is not in the contract's Phase")
class Dreaming(Plan):
    phase = Dreamy(3, 1e-3)


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


@breaks("reinit-is-trainable", "a phase reinitializes 2 stages and does not train them")
class Forgetful(Plan):
    phase = Phase(3, 1e-3, 1e-4, trainable=1, reinit=2)


@breaks("lr-decay-is-a-factor", "a phase has an lr_decay of 1.5")
class Growing(Plan):
    phase = Phase(3, 1e-3, lr_decay=1.5)


@breaks("phases-can-be-trained", "a phase is refused: asks for layers, which is not in the contract's Phase; keep to")
class Inventive(Plan):
    phase = Longer(3, 1e-3)


@breaks("candidates-are-configurations", "a phase of its candidate is refused: has 0 epochs")
@dataclass(frozen=True)
class Overconfident(Plan):
    epochs: int = option(3, "epochs")

    def phases(self, stages, info):
        return (Phase(self.epochs, 1e-3),)

    def candidates(self, info):
        return (replace(self, epochs=0),)


@breaks("prepare-is-undone", "the merged stages have another structure than the original ones; report this")
class Parting(Plan):
    phase = Phase(3, 1e-3, 1e-3, trainable=1, parameters=("*.scale",))

    def prepare(self, stages):
        import torch

        stages["third"].add_module("last", torch.nn.LayerNorm(16))
        stages["third"].last.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
        return lambda: None
