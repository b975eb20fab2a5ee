"""A trunk and a head that train together, split after the frozen stages, and the proof that those stay unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tlkit.errors import GateError
from tlkit.model.trunk import Trunk, state_hash
from tlkit.plugin.contract import Backbone, Phase

WEIGHT_DECAY = 1e-2  # AdamW's own default (Loshchilov and Hutter 2019)
SGD_WEIGHT_DECAY, MOMENTUM = 1e-4, 0.9  # as residual networks are trained (He et al. 2016)
ORIGINAL, FINE_TUNED, REINITIALIZED = "original", "fine-tuned", "reinitialized"


class Network:
    """A head, and where stages train the trunk below it; the modules are shared with the caller, changed in place."""

    def __init__(self, head: nn.Module, trunk: Trunk | None = None, device: torch.device | None = None) -> None:
        self.head = head.to(device or "cpu")
        if trunk is not None:
            trunk.to(device or "cpu").to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.trunk = trunk

    @property
    def stages(self) -> list[nn.Module]:
        """Stages of the trunk, shallow to deep."""
        return [] if self.trunk is None else list(self.trunk.stages.values())

    def split(self, trainable: int) -> tuple[nn.Module, nn.Module]:
        """Return the frozen part, from images on, and the part to train, up to logits.

        The `trainable` deepest stages train. The frozen part is in eval mode, so that no running statistic changes, and
        computes no gradients.
        """
        assert self.trunk is not None  # noqa: S101 - a head alone has no stages to split
        stages, pool = self.stages, self.trunk.pool
        first = len(stages) - trainable
        above, below = [self.trunk.normalize, *stages[:first]], stages[first:]
        (below if trainable else above).append(pool)
        self.trunk.requires_grad_(False)
        for module in below:
            module.requires_grad_(True)
        return nn.Sequential(*above).eval(), nn.Sequential(*below, self.head)

    def parameter_groups(self, phase: Phase) -> list[dict[str, Any]]:
        """Return an optimizer's groups with their highest learning rates: the head, then stages, deepest first."""
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "lr": phase.head_lr}]
        for depth, stage in enumerate(self.stages[::-1][: depth_of(phase, self.stages)]):
            modules = [stage, *([self.trunk.pool] if depth == 0 and self.trunk is not None else [])]
            parameters = [parameter for module in modules for parameter in module.parameters()]
            groups.append({"params": parameters, "lr": phase.trunk_lr * phase.lr_decay**depth})
        return [group for group in groups if group["params"]]

    def optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        """Return the optimizer of a phase; each of its groups records its `highest_lr`."""
        groups = [{**group, "highest_lr": group["lr"]} for group in self.parameter_groups(phase)]
        if phase.optimizer.name == "sgd":
            return torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=SGD_WEIGHT_DECAY, fused=True)
        return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)  # one pass over the weights, not ten

    def trained_modules(self, trainable: int) -> nn.Module:
        """Return everything that training the `trainable` deepest stages changes, as one module."""
        if self.trunk is None:
            return self.head
        stages = self.stages
        return nn.ModuleList([*stages[len(stages) - trainable :], self.trunk.pool, self.head])

    def reinitialize(self, backbone: Backbone, count: int, seed: int) -> None:
        """Give the `count` deepest stages random weights, which follow from the seed."""
        assert self.trunk is not None  # noqa: S101 - see `split`
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = backbone.stages(pretrained=False)
        for name in self.trunk.names[len(self.trunk.names) - count :]:
            self.trunk.stages[name].load_state_dict(fresh[name].state_dict())


def depth_of(phase: Phase, stages: Sequence[Any]) -> int:
    """Return the number of deepest stages that a phase trains."""
    return min(phase.trainable, len(stages)) if isinstance(phase.trainable, int) else len(phase.trainable)


def stage_hashes(trunk: Trunk) -> dict[str, str]:
    """Return a hash of every parameter and buffer of each stage."""
    return {name: state_hash(stage) for name, stage in trunk.stages.items()}


def changed_stages(trunk: Trunk, before: Mapping[str, str]) -> tuple[str, ...]:
    """Return the stages in which a bit of a parameter or buffer differs from the hashes taken before."""
    return tuple(name for name, known in stage_hashes(trunk).items() if known != before[name])


def check_frozen(trunk: Trunk, before: Mapping[str, str], trainable: int) -> tuple[str, ...]:
    """Return the changed stages; raise a GateError if one above the `trainable` deepest is among them."""
    changed = changed_stages(trunk, before)
    frozen = trunk.names[: len(trunk.names) - trainable]
    if wrong := [name for name in changed if name in frozen]:
        raise GateError(
            f"frozen stages changed during training: {', '.join(wrong)}",
            do="report this to the author of the backbone: a stage in eval mode must not change itself",
        )
    return changed


def provenance(stages: Sequence[str], phases: Sequence[Phase], changed: Sequence[str]) -> dict[str, str]:
    """Return for each stage whether its weights are the original ones, fine-tuned, or reinitialized.

    `changed` names those that differ: the best weights may be those before a stage was trained.
    """
    fresh = stages[len(stages) - max(phase.reinit for phase in phases) :]
    return {
        stage: ORIGINAL if stage not in changed else REINITIALIZED if stage in fresh else FINE_TUNED for stage in stages
    }
