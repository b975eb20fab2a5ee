"""One epoch: steps over all training images, and a look at the validation images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from tlkit.plugin.contract import Phase
from tlkit.training.device import Device
from tlkit.training.inputs import Batches, Inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHT_DECAY = 1e-2  # AdamW's own default (Loshchilov and Hutter 2019)
SGD_WEIGHT_DECAY, MOMENTUM = 1e-4, 0.9  # as residual networks are trained (He et al. 2016)
EVALUATED = 64  # images at once

Line = dict[str, Any]  # of the history
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # inputs and labels to inputs and shares of labels


class Diverged(Exception):
    """A loss that is no number: where it became so."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a phase needs: what learns, from inputs to logits; its parameters with their rates; what it learns from."""

    learning: nn.Module
    rates: list[dict[str, Any]]  # the head's first
    train: Inputs
    val: Inputs
    still: Sequence[nn.Module] = ()  # parts of it that stay in eval mode

    def begin(self) -> None:
        """Into training mode, but for what stays still."""
        self.learning.train()
        for module in self.still:
            module.eval()


@dataclass(frozen=True, slots=True)
class Epoch:
    """Which one it is: the phase and the epoch in it, both from 1, and the number through all phases."""

    phase: int
    number: int
    view: int


def optimizer(phase: Phase, lesson: Lesson) -> torch.optim.Optimizer:
    """The optimiser of a phase, each group of parameters with its highest rate."""
    groups = [{**group, "highest": group["lr"]} for group in lesson.rates]
    if phase.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=SGD_WEIGHT_DECAY, fused=True)
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)  # one pass over the weights, not ten


class Learner:
    """Takes the steps of a phase."""

    def __init__(
        self, phase: Phase, lesson: Lesson, machine: Device, seed: int, average: AveragedModel | None, whole: nn.Module
    ) -> None:
        self.phase, self.lesson, self.machine, self.seed = phase, lesson, machine, seed
        self.average, self.whole = average, whole
        self.optimizer = optimizer(phase, lesson)
        self.learning = machine.prepare(lesson.learning)
        counts = np.bincount(lesson.train.labels)
        self.classes = len(counts)
        self.balance = len(lesson.train.labels) / (self.classes * np.maximum(counts, 1))  # of mean 1 over the images
        self.weights = machine.put(torch.from_numpy(self.balance.astype(np.float32)))
        self.mix = mixing(phase, self.classes)

    def epoch(self, at: Epoch, tick: Callable[[int, Line], object]) -> Line:
        """One epoch of steps; returns its line, with the rates of its first step."""
        phase, train = self.phase, self.lesson.train
        random = np.random.SeedSequence([self.seed, at.phase, at.number])
        torch.manual_seed(int(random.generate_state(1)[0]))  # for dropout and its like
        whole_batches = self._batches(np.random.default_rng(random))
        shares = [self.machine.share(rows) for rows in whole_batches]
        first, steps = (at.number - 1) * len(whole_batches), phase.epochs * len(whole_batches)
        begin = rates(phase, rate(first, steps, phase.warmup))
        total = right = 0.0
        seen = 0
        self.lesson.begin()
        inputs = train.batches([mine for mine, _ in shares], at.view)
        for step, (rows, (mine, weight), given) in enumerate(zip(whole_batches, shares, inputs, strict=True), first):
            share = rate(step, steps, phase.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = share * group["highest"]
            loss, good = self._step(given, train.labels[mine], weight)
            loss, good = self.machine.summed([loss * len(rows) / self.machine.world_size, good])
            if not math.isfinite(loss):
                where = f"at step {step - first + 1} of phase {at.phase}, epoch {at.number}"
                raise Diverged(f"the loss is {loss} {where}, at rate {_in_words(rates(phase, share))}")
            total, right, seen = total + loss, right + good, seen + len(rows)
            tick(len(rows), {"loss": total / seen, "accuracy": right / seen, "lr": share * phase.head_lr})
        line: Line = {"phase": at.phase, "epoch": at.number}
        return line | begin | {"train_loss": total / seen, "train_accuracy": right / seen}

    def _batches(self, random: np.random.Generator) -> Batches:
        labels = self.lesson.train.labels
        if self.phase.balance == "sampling":  # as many draws as images, each class as likely as any
            shares = self.balance[labels] / self.balance[labels].sum()
            return split(random.choice(len(labels), len(labels), p=shares), self.phase.batch_size)
        return split(random.permutation(len(labels)), self.phase.batch_size)

    def _step(self, given: Tensor, labels: NDArray[np.int64], weight: float) -> tuple[float, float]:
        """One step; returns the mean loss of this process's images, times `weight`, and how many it got right."""
        truth = self.machine.put(torch.from_numpy(labels))
        given, target = self.mix(self.machine.put(given), truth) if self.mix else (self.machine.put(given), truth)
        loss, right = self.machine.retried(lambda parts: self._gradients(given, target, weight, parts), len(labels))
        if math.isfinite(loss):
            if self.phase.gradient_clipping:
                self.machine.scaler.unscale_(self.optimizer)
                learnt = [p for group in self.optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(learnt, self.phase.gradient_clipping)
            self.machine.scaler.step(self.optimizer)
            self.machine.scaler.update()
            if self.average is not None:
                self.average.update_parameters(self.whole)
        return loss, right if weight else 0.0

    def _gradients(self, given: Tensor, target: Tensor, weight: float, parts: int) -> tuple[float, float]:
        """Gradients of the mean loss over a batch, taken in so many parts."""
        self.optimizer.zero_grad()
        loss_sum = right = 0.0
        for x, y in zip(given.tensor_split(parts), target.tensor_split(parts), strict=True):
            with self.machine.autocast():
                logits = self.learning(x)
            loss = self._losses(logits.float(), y).sum() * (weight / len(target))
            self.machine.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item()
            right += int((logits.argmax(1) == (y if y.ndim == 1 else y.argmax(1))).sum())
        return loss_sum, right

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, target, label_smoothing=self.phase.label_smoothing, reduction="none")
        if self.phase.balance != "weights":
            return losses
        return losses * (self.weights[target] if target.ndim == 1 else target @ self.weights)


def mixing(phase: Phase, classes: int) -> Mix | None:
    """What mixes the images of a batch, where any does: each batch by one or the other of those that are on.

    Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019. Behind frozen stages it is their maps that are
    mixed: Verma et al., "Manifold Mixup", ICML 2019.
    """
    if not (phase.mixup or phase.cutmix):
        return None
    from tlkit.data.augmentation import transforms

    v2 = transforms()
    ways = {v2.MixUp: phase.mixup, v2.CutMix: phase.cutmix}
    on: list[Mix] = [way(alpha=alpha, num_classes=classes) for way, alpha in ways.items() if alpha]
    return on[0] if len(on) == 1 else v2.RandomChoice(on)


def rate(step: int, steps: int, warmup: float) -> float:
    """The share of its highest rate that anything learns at in a step of a phase: a rise, then half a cosine.

    Loshchilov and Hutter, "SGDR", ICLR 2017; the rise of Goyal et al., "Accurate, Large Minibatch SGD", 2017.
    """
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def rates(phase: Phase, share: float) -> Line:
    """The rates of the head and of the deepest stage, where that learns, as the history has them."""
    return {"lr": share * phase.head_lr} | ({"trunk_lr": share * phase.trunk_lr} if phase.trainable else {})


def _in_words(rates: Line) -> str:
    """The rates of a step, for people."""
    return f"{rates['lr']:.3g}" + (f" of the head and {rates['trunk_lr']:.3g} of the trunk" if len(rates) > 1 else "")


def split(order: NDArray[np.int64], size: int) -> Batches:
    """The indices in parts of `size`; a last one alone joins those before it, as one image has no batch statistics."""
    parts = np.split(order, range(size, len(order), size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def evaluate(learning: nn.Module, examples: Inputs, machine: Device) -> dict[str, float]:
    """Mean cross-entropy and accuracy."""
    labels = examples.labels
    batches = np.split(np.arange(len(labels)), range(EVALUATED, len(labels), EVALUATED))
    learning.eval()
    with torch.inference_mode(), machine.autocast():
        logits = torch.cat([learning(machine.put(inputs)) for inputs in examples.batches(batches, 0)]).float()
        truth = machine.put(torch.from_numpy(labels))
        loss = F.cross_entropy(logits, truth).item()
        return {"val_loss": loss, "val_accuracy": (logits.argmax(1) == truth).float().mean().item()}
