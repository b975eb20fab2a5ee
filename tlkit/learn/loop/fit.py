"""The one loop over phases.

All that is random in an epoch comes from the seed, the phase and the epoch: what was before does not matter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlkit.errors import DataError
from tlkit.learn.loop.inputs import Batches, Examples, Inputs
from tlkit.plugin.contract import Phase

WEIGHT_DECAY = 1e-2  # AdamW's own default (Loshchilov and Hutter 2019)
SGD_WEIGHT_DECAY, MOMENTUM = 1e-4, 0.9  # as residual networks are trained (He et al. 2016)
EVALUATED = 64  # images at once

Line = dict[str, Any]  # of the history


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a phase needs: what learns, from inputs to logits; its parameters with their rates; what it learns from."""

    learning: nn.Module
    rates: Sequence[dict[str, Any]]  # the head's first
    train: Inputs
    val: Inputs


@dataclass(frozen=True, slots=True)
class Fitted:
    """A line for each epoch; and, if the loss ended as no number, where that was."""

    history: list[Line]
    diverged: str | None = None


class Diverged(Exception):
    """A loss that is no number: where it became so."""


class Best:
    """The weights after the epoch with the least validation loss so far."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.loss = math.inf
        self.state: dict[str, Tensor] | None = None

    def forget(self) -> None:
        """Begin anew: the next weights are the best."""
        self.loss, self.state = math.inf, None

    def offer(self, loss: float) -> bool:
        """Take the weights as they are now if `loss` is less; says whether it was."""
        if loss >= self.loss:
            return False
        self.loss, self.state = loss, copy.deepcopy(self.module.state_dict())
        return True

    def restore(self) -> None:
        """Put the best weights back."""
        if self.state is not None:
            self.module.load_state_dict(self.state)


def fit_head(
    head: nn.Module,
    phases: Sequence[Phase],
    train: Examples,
    val: Examples,
    *,
    seed: int,
    tick: Callable[[int], None],
) -> tuple[nn.Module, Fitted]:
    """Train a head on features; returns it with the weights of its best epoch on `val`. See `fit`."""

    def lesson(phase: Phase) -> Lesson:
        return Lesson(head, [{"params": list(head.parameters()), "lr": phase.head_lr}], train, val)

    fitted = fit(head, phases, lesson, seed=seed, tick=tick)
    return head.eval(), fitted


def fit(
    whole: nn.Module,
    phases: Sequence[Phase],
    lesson: Callable[[Phase], Lesson],
    *,
    seed: int,
    tick: Callable[[int], None],
) -> Fitted:
    """Run all phases; `whole`, all that changes in any of them, is left with the weights of its best epoch.

    A phase begins with the best weights so far, unless it begins with random ones, and calls `lesson` once for what it
    needs. The best epoch is the one with the least loss on the validation images. `tick(n)` is called whenever n more
    epochs are done. Where a loss is no number, training ends with the best weights before that; if there are none,
    with a DataError.
    """
    best, history = Best(whole), list[Line]()
    with torch.random.fork_rng(devices=[]):
        try:
            for number, phase in enumerate(phases, start=1):
                _run(number, phase, lesson(phase), best, history, seed, tick)
        except Diverged as where:
            if best.state is None:
                raise DataError(str(where), do="take smaller learning rates") from where
            best.restore()
            return Fitted(history, str(where))
    return Fitted(history)


def _run(
    number: int, phase: Phase, lesson: Lesson, best: Best, history: list[Line], seed: int, tick: Callable[[int], None]
) -> None:
    """One phase, from the best weights so far to the best weights so far."""
    if phase.restart:
        best.forget()
    optimiser, waited = _optimiser(phase, lesson), 0
    for epoch in range(1, phase.epochs + 1):
        line = _learn(number, epoch, phase, lesson, optimiser, seed, len(history) + 1)
        line |= evaluate(lesson.learning, lesson.val)
        if not math.isfinite(line["val_loss"]):
            raise Diverged(
                f"the loss on the validation images is {line['val_loss']} after phase {number}, epoch {epoch}"
            )
        history.append(line)
        tick(1)
        waited = 0 if best.offer(line["val_loss"]) else waited + 1
        if waited == phase.patience > 0:
            tick(phase.epochs - epoch)
            break
    best.restore()


def _optimiser(phase: Phase, lesson: Lesson) -> torch.optim.Optimizer:
    groups = [{**group, "highest": group["lr"]} for group in lesson.rates]
    if phase.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=SGD_WEIGHT_DECAY)
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)


def _learn(
    number: int, epoch: int, phase: Phase, lesson: Lesson, optimiser: torch.optim.Optimizer, seed: int, view: int
) -> Line:
    """One epoch of steps; returns its line, with the rates of its first step."""
    random = np.random.SeedSequence([seed, number, epoch])
    torch.manual_seed(int(random.generate_state(1)[0]))  # for dropout and its like
    labels = lesson.train.labels
    batches = split(np.random.default_rng(random).permutation(len(labels)), phase.batch)
    first, steps = (epoch - 1) * len(batches), phase.epochs * len(batches)
    line = {"phase": number, "epoch": epoch} | rates(phase, rate(first, steps, phase.warmup))
    loss_of = nn.CrossEntropyLoss(label_smoothing=phase.smoothing)
    total, right = 0.0, 0
    lesson.learning.train()
    for step, (rows, inputs) in enumerate(zip(batches, lesson.train.batches(batches, view), strict=True), start=first):
        share = rate(step, steps, phase.warmup)
        for group in optimiser.param_groups:
            group["lr"] = share * group["highest"]
        truth = torch.from_numpy(labels[rows])
        logits = lesson.learning(inputs)
        loss = loss_of(logits, truth)
        if not math.isfinite(value := loss.item()):
            where = f"at step {step - first + 1} of phase {number}, epoch {epoch}, at rate {share * phase.head_lr:g}"
            raise Diverged(f"the loss is {value} {where}")
        optimiser.zero_grad()
        loss.backward()
        if phase.clip:
            nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], phase.clip)
        optimiser.step()
        total += value * len(rows)
        right += int((logits.argmax(1) == truth).sum())
    return line | {"train_loss": total / len(labels), "train_accuracy": right / len(labels)}


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
    return {"lr": share * phase.head_lr} | ({"trunk_lr": share * phase.trunk_lr} if phase.moving else {})


def split(order: np.ndarray[Any, np.dtype[np.int64]], size: int) -> Batches:
    """The indices in parts of `size`; a last one alone joins those before it, as one image has no batch statistics."""
    parts = np.split(order, range(size, len(order), size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def evaluate(learning: nn.Module, examples: Inputs) -> dict[str, float]:
    """Mean cross-entropy and accuracy."""
    batches = np.split(np.arange(len(examples.labels)), range(EVALUATED, len(examples.labels), EVALUATED))
    learning.eval()
    with torch.inference_mode():
        logits = torch.cat([learning(inputs) for inputs in examples.batches(batches, 0)])
        labels = torch.from_numpy(examples.labels)
        loss = F.cross_entropy(logits, labels).item()
        return {"val_loss": loss, "val_accuracy": (logits.argmax(1) == labels).float().mean().item()}
