"""Moving a trunk: what each phase of it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import Backbone, Phase
from tlkit.training.activation_cache import ActivationCache, border, check_space, forget_others
from tlkit.training.batchnorm import batch_norms, following
from tlkit.training.freezing import Network, Originals
from tlkit.training.gradients import narrow_kernels
from tlkit.training.inputs import AugmentedViews, Decoded, Examples, Images, Inputs
from tlkit.training.phases import most_moving
from tlkit.training.steps import Lesson
from tlkit.training.trainer import FitResult, Setting, fit
from tlkit.util.resources import keep_freed_memory
from tlkit.util.text import format_bytes


@dataclass(frozen=True, slots=True)
class Split:
    """The images of one split, and their features from the deployed trunk as it was before training."""

    images: Images
    features: Examples


@dataclass(frozen=True, slots=True)
class Store:
    """Where the output of frozen stages is kept, for how many views of each image; 0 views: another in each epoch."""

    folder: Path | None
    views: int


def tune(
    trunk: Trunk,
    head: nn.Module,
    phases: Sequence[Phase],
    backbone: Backbone,
    train: Split,
    val: Split,
    store: Store,
    setting: Setting,
) -> tuple[FitResult, tuple[str, ...]]:
    """Train a head and the deepest stages of a trunk, in place; the stages that no phase moves are proven the same.

    Returns the history, and the names of the stages that are no more as they were.
    """
    trainable, names = most_moving(phases), trunk.names
    originals = Originals(trunk)
    network = Network(trunk, head, setting.machine.device)
    lessons = Lessons(network, phases, backbone, train, val, store, setting)
    moves = [trunk.stages[name] for name in names[len(names) - trainable :]]
    machine = setting.machine
    with keep_freed_memory(), narrow_kernels(machine.device), following(moves, shared=machine.world_size > 1):
        fitted = fit(network.changing(trainable), phases, lessons, setting)
    trunk.to("cpu").to(memory_format=torch.contiguous_format)
    head.to("cpu").eval()
    originals.prove(len(names) - trainable)
    trunk.requires_grad_(False).eval()
    return fitted, originals.changed()


@dataclass(frozen=True, slots=True)
class Lessons:
    """What each phase learns from; called with its number, from 1, when it begins."""

    network: Network
    phases: Sequence[Phase]
    backbone: Backbone
    train: Split
    val: Split
    store: Store
    setting: Setting

    def __call__(self, number: int) -> Lesson:
        """As long as nothing has moved, a phase in which nothing does learns from the deployed trunk's features."""
        phase = self.phases[number - 1]
        if phase.reinit:
            self.network.reinit(fresh_stages(self.backbone, self.setting.seed), phase.reinit)
        rates = self.network.rates(phase)
        if not any(each.trainable for each in self.phases[:number]):
            return Lesson(self.network.head, rates, self.train.features, self.val.features)
        frozen, learning = self.network.part(phase.trainable)
        return Lesson(learning, rates, *self._inputs(phase, frozen), self._still(number))

    def _still(self, number: int) -> Sequence[nn.Module]:
        """The batch norms that keep the statistics of the pretraining: those of stages that still have its weights."""
        phase, stages = self.phases[number - 1], list(self.network.trunk.stages.values())
        restarted = max(each.reinit for each in self.phases[:number])
        return batch_norms(stages[: len(stages) - restarted]) if phase.batchnorm == "freeze" else ()

    def _inputs(self, phase: Phase, frozen: nn.Module) -> tuple[Inputs, Inputs]:
        """The training and the validation images as the frozen stages give them on."""
        seed, machine = self.setting.seed, self.setting.machine
        varied = AugmentedViews.of(phase, seed, self.store.views)
        if not self._stores(phase):
            return tuple(  # type: ignore[return-value]  # two of them
                Decoded(split.images, frozen, variety, machine.device)
                for split, variety in ((self.train, varied), (self.val, AugmentedViews(seed)))
            )
        names, folder = self.network.trunk.names, self.store.folder
        assert folder is not None  # noqa: S101 - see `_stores`
        edge = border(self.network.trunk.upto(names[len(names) - phase.trainable - 1]), frozen, machine)
        if machine.is_main_process:
            forget_others(folder, edge.key)
        progress = self.setting.watch.progress
        stored = [
            ActivationCache(folder, name, split.images, variety, edge, machine, progress)
            for name, split, variety in (("train", self.train, varied), ("val", self.val, AugmentedViews(seed)))
        ]
        needed = sum(each.missing for each in stored)
        check_space(folder, needed)
        self.setting.watch.say(f"keeping the output of the frozen stages takes {format_bytes(needed)} more")
        return stored[0], stored[1]

    def _stores(self, phase: Phase) -> bool:
        """Whether it pays to keep what the frozen stages give: there are some, and an image is seen again as it was."""
        frozen = len(self.network.trunk.names) - phase.trainable
        repeats = phase.epochs > 1 and (self.store.views > 0 or not AugmentedViews.of(phase, 0, 0).varies)
        return self.store.folder is not None and frozen > 0 and phase.trainable > 0 and repeats


def fresh_stages(backbone: Backbone, seed: int) -> dict[str, nn.Module]:
    """The stages of a backbone with random weights, always the same for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(backbone.stages(pretrained=False))
