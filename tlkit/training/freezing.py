"""A trunk and a head that learn together, parted where the frozen stages end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tlkit.errors import GateError
from tlkit.model.trunk import Trunk, state_hash
from tlkit.plugin.contract import Phase
from tlkit.training.gradients import LastInOrder


class Network:
    """The stages of a trunk, its pool and a head; they are shared with whoever made them, and changed in place."""

    def __init__(self, trunk: Trunk, head: nn.Module, device: torch.device | None = None) -> None:
        self.trunk = trunk.to(device or "cpu").to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.head = head.to(device or "cpu")

    def part(self, trainable: int) -> tuple[nn.Module, nn.Module]:
        """What stays, from images on, and what learns, up to logits, while the `moving` deepest stages learn.

        The former is in eval mode, so that no statistic drifts, and without gradients.
        """
        stages, pool = list(self.trunk.stages.values()), self.trunk.pool
        border = len(stages) - trainable
        above, below = [self.trunk.normalize, *stages[:border]], [*stages[border:]]
        if trainable:
            below += [LastInOrder(), pool]
        else:
            above.append(pool)
        frozen, learning = nn.Sequential(*above), nn.Sequential(*below, self.head)
        self.trunk.requires_grad_(False)
        for stage in below:
            stage.requires_grad_(True)
        return frozen.eval(), learning

    def rates(self, phase: Phase) -> list[dict[str, Any]]:
        """What learns at which highest rate, for an optimiser: the head first, then stage by stage, deepest first."""
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "lr": phase.head_lr}]
        deepest_first = list(self.trunk.stages.values())[::-1]
        for depth, stage in enumerate(deepest_first[: phase.trainable]):
            modules = (stage, self.trunk.pool) if depth == 0 else (stage,)
            parameters = [parameter for module in modules for parameter in module.parameters()]
            groups.append({"params": parameters, "lr": phase.trunk_lr * phase.lr_decay**depth})
        return [group for group in groups if group["params"]]

    def changing(self, trainable: int) -> nn.Module:
        """All that the `moving` deepest stages' learning changes, as one module."""
        stages = list(self.trunk.stages.values())
        return nn.ModuleList([*stages[len(stages) - trainable :], self.trunk.pool, self.head])

    def reinit(self, fresh: Mapping[str, nn.Module], count: int) -> None:
        """Give the `count` deepest stages the weights of `fresh` ones."""
        for name in self.trunk.names[len(self.trunk.names) - count :]:
            self.trunk.stages[name].load_state_dict(fresh[name].state_dict())


class Originals:
    """The stages of a trunk as they are now: proof of which are the same to the bit later on."""

    def __init__(self, trunk: Trunk) -> None:
        self.trunk = trunk
        self.hashes = self._hashes()

    def changed(self) -> tuple[str, ...]:
        """The stages of which a parameter or a buffer is another than it was."""
        return tuple(name for name, known in self._hashes().items() if known != self.hashes[name])

    def prove(self, count: int) -> None:
        """Raise a GateError if one of the `count` shallowest stages has changed."""
        changed = [name for name in self.changed() if name in self.trunk.names[:count]]
        if changed:
            raise GateError(
                f"stages that were to stay changed in training: {', '.join(changed)}",
                do="report this to the author of the backbone: a stage in eval mode must not change itself",
            )

    def _hashes(self) -> dict[str, str]:
        return {name: state_hash(stage) for name, stage in self.trunk.stages.items()}
