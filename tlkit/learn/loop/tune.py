"""Moving a trunk: what each phase of it learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tlkit.learn.loop.fit import Fitted, Lesson, fit
from tlkit.learn.loop.inputs import Decoded, Examples, Images, Inputs
from tlkit.learn.loop.network import Network, Originals
from tlkit.learn.loop.phases import most_moving
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import Backbone, Phase


@dataclass(frozen=True, slots=True)
class Split:
    """The images of one split, and their features from the deployed trunk as it was before training."""

    images: Images
    features: Examples


def tune(
    trunk: Trunk,
    head: nn.Module,
    phases: Sequence[Phase],
    backbone: Backbone,
    train: Split,
    val: Split,
    *,
    seed: int,
    tick: Callable[[int], None],
) -> tuple[Fitted, tuple[str, ...]]:
    """Train a head and the deepest stages of a trunk, in place; the stages that no phase moves are proven the same.

    Returns the history, and the names of the stages that are no more as they were.

    As long as nothing has moved, a phase in which nothing does learns from the deployed trunk's features.
    """
    moving = most_moving(phases)
    network, originals = Network(trunk, head), Originals(trunk)
    moved = False

    def lesson(phase: Phase) -> Lesson:
        nonlocal moved
        if phase.restart:
            network.restart(fresh_stages(backbone, seed), phase.restart)
        moved = moved or phase.moving > 0
        if not moved:
            return Lesson(head, network.rates(phase), train.features, val.features)
        frozen, learning = network.part(phase.moving)

        def inputs(split: Split, augment: bool) -> Inputs:
            return Decoded(split.images, frozen, seed, augment)

        return Lesson(learning, network.rates(phase), inputs(train, phase.augment), inputs(val, False))

    fitted = fit(network.changing(moving), phases, lesson, seed=seed, tick=tick)
    originals.prove(len(trunk.names) - moving)
    trunk.to(memory_format=torch.contiguous_format)
    trunk.requires_grad_(False).eval()
    head.eval()
    return fitted, originals.changed()


def fresh_stages(backbone: Backbone, seed: int) -> dict[str, nn.Module]:
    """The stages of a backbone with random weights, always the same for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(backbone.stages(pretrained=False))
