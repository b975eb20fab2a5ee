"""The one loop over phases.

All that is random in an epoch comes from the seed, the phase and the epoch: what was before does not matter, so a run
that was killed reaches the same weights when it is taken up again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tlkit.errors import DataError
from tlkit.plugin.contract import Phase
from tlkit.training.checkpoint import Checkpoint, Checkpoints, memories, remember
from tlkit.training.device import Device
from tlkit.training.history import Watch
from tlkit.training.inputs import Examples
from tlkit.training.steps import Diverged, Epoch, Learner, Lesson, Line, evaluate

Lessons = Callable[[int], Lesson]  # of the phase of a number, from 1


@dataclass(frozen=True, slots=True)
class Setting:
    """What a training has around it: its seed, who watches it, what it runs on, where it is kept to be taken up."""

    seed: int
    watch: Watch = field(default_factory=Watch)
    machine: Device = field(default_factory=Device)
    checkpoints: Checkpoints | None = None


@dataclass(frozen=True, slots=True)
class FitResult:
    """A line for each epoch; and, if the loss ended as no number, where that was."""

    history: list[Line]
    diverged: str | None = None


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
    head: nn.Module, phases: Sequence[Phase], train: Examples, val: Examples, setting: Setting
) -> tuple[nn.Module, FitResult]:
    """Train a head on features; returns it with the weights of its best epoch on `val`. See `fit`."""

    def lesson(number: int) -> Lesson:
        return Lesson(head, [{"params": list(head.parameters()), "lr": phases[number - 1].head_lr}], train, val)

    fitted = fit(head, phases, lesson, setting)
    return head.eval(), fitted


def fit(whole: nn.Module, phases: Sequence[Phase], lesson: Lessons, setting: Setting) -> FitResult:
    """Run all phases; `whole`, all that changes in any of them, is left with the weights of its best epoch.

    A phase begins with the best weights so far, unless it begins with random ones, and calls `lesson` once for what it
    needs. The best epoch is the one with the least loss on the validation images. Where a loss is no number, training
    ends with the best weights before that; if there are none, with a DataError. With checkpoints it begins where the
    newest one left off.
    """
    best = Best(whole)
    begun = setting.checkpoints.newest() if setting.checkpoints else None
    history = list(begun.history) if begun else []
    with torch.random.fork_rng(devices=[]):
        try:
            for number, phase in enumerate(phases, start=1):
                if begun is None or number >= begun.phase:
                    state = begun if begun is not None and number == begun.phase else None
                    _Course(number, phase, whole, best, history, setting).run(lesson, state)
        except Diverged as where:
            if best.state is None:
                raise DataError(str(where), do="take smaller learning rates") from where
            best.restore()
            return FitResult(history, str(where))
    return FitResult(history)


class _Course:
    """One phase, from the best weights so far to the best weights so far."""

    def __init__(
        self, number: int, phase: Phase, whole: nn.Module, best: Best, history: list[Line], setting: Setting
    ) -> None:
        self.number, self.phase, self.whole, self.best = number, phase, whole, best
        self.history, self.setting = history, setting
        self.done = self.waited = 0
        self.average: AveragedModel | None = None

    def run(self, lesson: Lessons, begun: Checkpoint | None) -> None:
        """All its epochs, or those that are left of one that was begun."""
        if begun is not None:
            self.whole.load_state_dict(begun.now)  # what is frozen in this phase may have moved in one before
        given = lesson(self.number)
        if self.phase.reinit:
            self.best.forget()
        if self.phase.ema:
            average = get_ema_multi_avg_fn(self.phase.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.whole, multi_avg_fn=average, use_buffers=True)
            self.average.update_parameters(self.whole)  # it begins with the weights before the first step
        machine, watch = self.setting.machine, self.setting.watch
        learner = Learner(self.phase, given, machine, self.setting.seed, self.average, self.whole)
        if begun is not None:
            self._take_up(begun, learner)
        images = len(given.train.labels)
        watch.phase(self.number, self.phase.epochs * images, self.done * images)
        while self.done < self.phase.epochs and not self.waited == self.phase.patience > 0:
            self.done += 1
            line = learner.epoch(Epoch(self.number, self.done, len(self.history) + 1), watch.step)
            line |= self._evaluated(given)
            self.history.append(line)
            watch.epoch(line)
            self._keep(learner)
        watch.step((self.phase.epochs - self.done) * images, {})
        self.best.restore()

    def _evaluated(self, given: Lesson) -> Line:
        """How good the weights are, or their average where one is kept; if they are the best, they are kept."""
        own = copy.deepcopy(self.whole.state_dict()) if self.average is not None else None
        if self.average is not None:
            self.whole.load_state_dict(self.average.module.state_dict())
        found = evaluate(given.learning, given.val, self.setting.machine)
        if not math.isfinite(found["val_loss"]):
            where = f"after phase {self.number}, epoch {self.done}"
            raise Diverged(f"the loss on the validation images is {found['val_loss']} {where}")
        self.waited = 0 if self.best.offer(found["val_loss"]) else self.waited + 1
        if own is not None:
            self.whole.load_state_dict(own)
        return dict(found)

    def _keep(self, learner: Learner) -> None:
        """Write a checkpoint, if it is time to, or the phase is over."""
        checkpoints, machine = self.setting.checkpoints, self.setting.machine
        over = self.done == self.phase.epochs or self.waited == self.phase.patience > 0
        if checkpoints is None or not machine.is_main_process or not (over or checkpoints.due()):
            return
        average = {} if self.average is None else self.average.state_dict()
        checkpoints.save(
            Checkpoint(
                self.number,
                self.done,
                self.waited,
                self.best.loss,
                self.history,
                now=self.whole.state_dict(),
                best=self.best.state or {},
                average=average,
                optimizer=memories(learner.optimizer),
                scaler=machine.scaler.state_dict(),
            )
        )

    def _take_up(self, begun: Checkpoint, learner: Learner) -> None:
        """Be where that was."""
        self.done, self.waited = begun.epoch, begun.waited
        self.whole.load_state_dict(begun.now)
        self.best.loss = begun.loss
        self.best.state = begun.best or None
        if self.average is not None:
            self.average.load_state_dict(begun.average)
        remember(learner.optimizer, begun.optimizer)
        self.setting.machine.scaler.load_state_dict(begun.scaler)
