"""The trainer: runs a list of phases on a network.

Everything random in an epoch follows from the seed, the phase and the epoch, whatever came before, so an interrupted
run reaches the same weights after it is resumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tlkit.errors import DataError
from tlkit.model.batchnorm import batch_norms
from tlkit.plugin.contract import Backbone, Phase
from tlkit.training.activation_cache import ActivationCache, open_cache
from tlkit.training.batchnorm import training_batch_norms
from tlkit.training.checkpoint import Checkpoint, Checkpoints, load_optimizer_state, optimizer_state
from tlkit.training.device import Device
from tlkit.training.freezing import Network, Preparation, Prepare, Tensors, pull_to_origin, update_average
from tlkit.training.gradients import fast_gradients
from tlkit.training.history import Line, Monitor, learning_rates, lr_factor
from tlkit.training.inputs import (
    AugmentedViews,
    Batches,
    DecodedImages,
    Examples,
    common_rows,
    evaluate,
    mixing,
    padded,
    split_batches,
)
from tlkit.util.resources import keep_freed_memory

DIVERGED = 100  # times the loss of a uniform prediction: training does not end with a validation loss above that

Inputs = Examples | DecodedImages | ActivationCache
Step = tuple[int, float, Tensor]  # its images, its learning rate factor, and its loss and correct images (see `_step`)


@dataclass(frozen=True, slots=True)
class FitResult:
    """One line per epoch; where training diverged, if it did; the stages whose weights changed."""

    history: list[Line]
    diverged: str | None = None
    changed: tuple[str, ...] = ()


@dataclass(eq=False)
class Trainer:
    """Trains a network through phases; owns the current phase, its inputs and its optimizer.

    A phase begins with the best weights so far, unless it reinitializes stages. The best weights are those of the epoch
    with the lowest validation loss. `views` augmented views per image are cached in `cache_dir`.
    """

    network: Network
    phases: Sequence[Phase]
    train_examples: Examples
    val_examples: Examples
    _: KW_ONLY
    seed: int = 0
    device: Device = field(default_factory=Device)
    monitor: Monitor = field(default_factory=Monitor)
    checkpoints: Checkpoints | None = None
    backbone: Backbone | None = None  # builds the stages that a phase reinitializes
    prepare: Prepare = lambda _stages: None  # of the strategy
    views: int = 0
    cache_dir: Path | None = None
    inputs: tuple[ActivationCache, ActivationCache] | None = None  # of train and val, where phases share the stages

    phase: Phase = field(init=False)
    model: nn.Module = field(init=False)  # what the phase trains, from its inputs to logits
    train: Inputs = field(init=False)
    val: Inputs = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    average: Tensors = field(init=False)  # of the weights, if the phase keeps one
    in_eval: Sequence[nn.Module] = field(init=False)  # modules that stay in eval mode
    rows: int = field(init=False)  # to which batches are padded, so that all have one shape; 0: as many as they have
    step_rows: int = field(init=False)  # those of a step, which is not padded if batch norms use its statistics
    changing: Sequence[str] = field(init=False)  # names of the tensors that the phases may change
    origin: Tensors = field(init=False)  # those before training, if weights are anchored to them

    def __post_init__(self) -> None:
        labels = self.train_examples.labels
        counts = np.bincount(labels)
        self.balance = len(labels) / (len(counts) * np.maximum(counts, 1))  # by class, mean 1 over the images
        self.class_weights = self.device.put(torch.from_numpy(self.balance.astype(np.float32)))
        self.history: list[Line] = []
        self.number = self.epoch = self.stale_epochs = 0  # phase and epoch from 1; epochs since the best one
        self.best_loss, self.best, self.origin = math.inf, Tensors(), Tensors()

    def fit(self) -> FitResult:
        """Run all phases and leave the network, on the CPU, with its best weights.

        Starts from the newest checkpoint. A loss that becomes NaN or infinite, or a validation loss far above chance
        at the end, ends training with the best weights before it, or raises a DataError if there are none.
        Raises a GateError if a tensor that no phase trains changed.
        """
        network, trunk, head, device = self.network, self.network.trunk, self.network.head, self.device
        if trunk is None:
            self.changing = network.changing(self.phases)
            diverged = self._run_phases()
            head.to("cpu").eval()
            return FitResult(self.history, diverged)
        preparation = Preparation(network, self.phases, self.prepare, self.seed)
        self.changing = preparation.changing
        if any(phase.anchor for phase in self.phases):
            self.origin = self._copy()
        learning = {name for phase in self.phases for name in network.learning(phase)}
        with (
            keep_freed_memory(),
            fast_gradients(device.torch_device, trunk.pool),
            training_batch_norms((trunk.stages[name] for name in learning), shared=device.world_size > 1),
        ):
            diverged = self._run_phases()
        trunk.to("cpu").to(memory_format=torch.contiguous_format)
        head.to("cpu").eval()
        changed = preparation.finish()
        trunk.requires_grad_(False).eval()
        return FitResult(self.history, diverged, changed)

    def _run_phases(self) -> str | None:
        """Return where training diverged, if it did."""
        checkpoint = self.checkpoints.newest() if self.checkpoints else None
        self.history = list(checkpoint.history) if checkpoint else []
        with torch.random.fork_rng(devices=[]):
            try:
                for number, phase in enumerate(self.phases, start=1):
                    if checkpoint is None or number >= checkpoint.phase:
                        resumed = checkpoint if checkpoint and number == checkpoint.phase else None
                        self._run_phase(number, phase, resumed)
                last = self.history[-1]["val_loss"] if self.history else 0.0
                if last > DIVERGED * math.log(len(self.balance)):
                    where = f"after phase {self.number}, epoch {self.epoch}"
                    lowest = f"the lowest was {self.best_loss:.3g}"
                    raise FloatingPointError(f"the validation loss is {last:.3g} {where}; {lowest}")
            except FloatingPointError as error:
                if not self.best:
                    raise DataError(str(error), do="use smaller learning rates") from error
                self.network.load(self.best)
                return str(error)
        return None

    def _run_phase(self, number: int, phase: Phase, checkpoint: Checkpoint | None) -> None:
        """Train until the phase is over, then restore the best weights."""
        self.number, self.phase = number, phase
        self._start_phase(checkpoint)
        images = len(self.train.labels)
        self.monitor.start_phase(self.number, self.phase.epochs * images, self.epoch * images)
        while not self._is_over():
            self.epoch += 1
            line = self._train_epoch() | self._validate()
            self.history.append(line)
            self.monitor.end_epoch(line)
            self._save_checkpoint()
        self.monitor.tick((self.phase.epochs - self.epoch) * images)
        self.network.load(self.best)

    def _trained(self) -> Tensors:
        """Return the tensors that the phases may change."""
        tensors = self.network.tensors()
        return {name: tensors[name].detach() for name in self.changing}

    def _copy(self) -> Tensors:
        return {name: tensor.clone() for name, tensor in self._trained().items()}

    def _is_over(self) -> bool:
        return self.epoch == self.phase.epochs or self.stale_epochs == self.phase.patience > 0

    def _start_phase(self, checkpoint: Checkpoint | None) -> None:
        """Set up model, inputs, optimizer and average, as they are in the checkpoint if there is one."""
        phase = self.phase
        self.epoch = self.stale_epochs = 0
        if checkpoint is not None:
            self.epoch, self.stale_epochs = checkpoint.epoch, checkpoint.stale_epochs
            self.best_loss, self.best = checkpoint.best_loss, checkpoint.best
            self.network.load(checkpoint.weights)
        elif phase.reinit:
            assert self.backbone is not None  # noqa: S101 - a head alone has no stages to reinitialize
            self.network.reinitialize(self.backbone, phase.reinit, self.seed)
            self.best_loss, self.best = math.inf, {}
        self._set_model_and_inputs()
        in_eval = {id(module) for each in self.in_eval for module in each.modules()}
        by_batch = any(id(norm) not in in_eval for norm in batch_norms([self.model]))  # padding would change statistics
        self.step_rows = 0 if by_batch else self.rows
        self.mix = mixing(phase, len(self.balance))
        self.average = self._copy() if phase.ema else {}  # it begins with the weights before the first step
        self.optimizer = self.network.optimizer(phase)
        self.parallel_model = self.device.prepare(self.model)
        if checkpoint is not None:
            self.average = {name: self.device.put(tensor) for name, tensor in checkpoint.average.items()}
            load_optimizer_state(self.optimizer, checkpoint.optimizer)
            self.device.micro_batches = checkpoint.micro_batches
            self.device.scaler.load_state_dict(checkpoint.scaler)

    def _set_model_and_inputs(self) -> None:
        """Until stages were trained, a phase without trainable ones uses the features of the deployed trunk."""
        phase, trunk, device = self.phase, self.network.trunk, self.device
        images = len(self.train_examples.labels)
        self.rows = common_rows(images, phase.batch_size, device.world_size) if device.fixed_shapes else 0
        if trunk is None or not any(each.trainable for each in self.phases[: self.number]):
            self.model, self.in_eval = self.network.head, ()
            self.train, self.val = self.train_examples, self.val_examples
            return
        frozen, self.model, self.in_eval, first = self.network.split(self.phases[: self.number])
        train_views = AugmentedViews.from_phase(phase, trunk.preprocessing, self.seed, self.views)
        val_views = AugmentedViews(trunk.preprocessing, self.seed)
        splits = (self.train_examples, train_views), (self.val_examples, val_views)
        repeats = phase.epochs > 1 and (self.views > 0 or not train_views.varies)  # an image is seen again as it was
        if self.inputs is not None:
            self.train, self.val = self.inputs
            return
        if self.cache_dir is None or not repeats or not 0 < first < len(trunk.names):
            self.train, self.val = (DecodedImages(*each, frozen, device, self.rows, phase.epochs) for each in splits)
            return
        stages = trunk.upto(trunk.names[first - 1])
        self.train, self.val = open_cache(self.cache_dir, stages, frozen, *splits, device, self.monitor.progress)

    def _train_epoch(self) -> Line:
        """Take the steps of one epoch; return its line, with the learning rates of its first step."""
        phase, device = self.phase, self.device
        random = np.random.SeedSequence([self.seed, self.number, self.epoch])
        torch.manual_seed(int(random.generate_state(1)[0]))  # for dropout and the like
        batches = self._batches(np.random.default_rng(random))
        shards = [device.shard(rows) for rows in batches]
        first, steps = (self.epoch - 1) * len(batches), phase.epochs * len(batches)
        self.model.train()
        for module in self.in_eval:
            module.eval()
        line: Line = {"phase": self.number, "epoch": self.epoch}
        line |= learning_rates(phase, lr_factor(first, steps, phase.optimizer.warmup))
        sums, unread = np.zeros(3), list[Step]()
        # Views are counted through all phases.
        inputs = self.train.batches([own for own, _ in shards], len(self.history) + 1)
        for step, (rows, (own, weight), x) in enumerate(zip(batches, shards, inputs, strict=True), first):
            factor = lr_factor(step, steps, phase.optimizer.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = factor * group["highest_lr"]
            unread.append((len(rows), factor, self._step(x, self.train.labels[own], weight)))
            if len(unread) == device.unread_steps or rows is batches[-1]:
                self._read(unread, step - first + 2 - len(unread), sums)
                unread.clear()
        return line | {"train_loss": float(sums[0] / sums[2]), "train_accuracy": float(sums[1] / sums[2])}

    def _read(self, steps: Sequence[Step], number: int, sums: NDArray[np.float64]) -> None:
        """Add loss, correct and all images of some steps, the first with a number, to the sums of the epoch.

        The device is waited for once. Raises FloatingPointError at the first loss that is not finite.
        """
        results = self.device.all_sum(torch.stack([result for *_, result in steps])).tolist()
        for step, ((images, factor, _), (loss, correct)) in enumerate(zip(steps, results, strict=True), number):
            loss /= self.device.world_size  # noqa: PLW2901 - the weights of the shards sum to it
            if not math.isfinite(loss):
                where = f"at step {step} of phase {self.number}, epoch {self.epoch}"
                rates = " and ".join(f"{name} {lr:.3g}" for name, lr in learning_rates(self.phase, factor).items())
                raise FloatingPointError(f"the loss is {loss} {where}, with {rates}")
            sums += (loss * images, correct, images)
            running = {"loss": sums[0] / sums[2], "accuracy": sums[1] / sums[2], "lr": factor * self.phase.head_lr}
            self.monitor.step(images, running)

    def _batches(self, random: np.random.Generator) -> Batches:
        labels = self.train.labels
        if self.phase.loss.balance == "sampling":  # as many draws as images, each class as likely as any
            shares = self.balance[labels] / self.balance[labels].sum()
            return split_batches(random.choice(len(labels), len(labels), p=shares), self.phase.batch_size)
        return split_batches(random.permutation(len(labels)), self.phase.batch_size)

    def _step(self, x: Tensor, labels: NDArray[np.int64], weight: float) -> Tensor:
        """Take one step; return the mean loss of this process's images, times `weight`, and the correct ones.

        They are `(2,)` float64 and stay on the device, so that nothing waits for it.
        """
        device, (x, target) = self.device, (self.device.put(x), self.device.put(torch.from_numpy(labels)))
        if self.mix is not None:
            x, target = self.mix(x, target)
        result: Tensor = device.within_memory(lambda parts: self._backward(x, target, weight, parts), len(labels))
        if self.phase.optimizer.gradient_clipping:
            device.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.phase.optimizer.gradient_clipping)
        device.scaler.step(self.optimizer)
        device.scaler.update()
        pull_to_origin(self.optimizer, self.origin, self.phase.anchor)
        update_average(self.average, self._trained() if self.average else {}, self.phase.ema)
        return result

    def _backward(self, x: Tensor, target: Tensor, weight: float, parts: int) -> Tensor:
        """Compute the gradients of a batch's mean loss, in so many micro-batches."""
        self.optimizer.zero_grad()
        rows, result = math.ceil(self.step_rows / parts), torch.zeros(2, dtype=torch.float64, device=x.device)
        for inputs, truth in zip(x.tensor_split(parts), target.tensor_split(parts), strict=True):
            with self.device.autocast():
                logits = self.parallel_model(padded(inputs, rows))[: len(truth)]
            loss = self._losses(logits.float(), truth).sum() * (weight / len(target))
            self.device.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            correct = (logits.argmax(1) == (truth if truth.ndim == 1 else truth.argmax(1))).sum()
            result += torch.stack([loss.detach().double(), correct.double() * (weight > 0)])
        return result

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, target, label_smoothing=self.phase.loss.label_smoothing, reduction="none")
        if self.phase.loss.balance != "weights":
            return losses
        return losses * (self.class_weights[target] if target.ndim == 1 else target @ self.class_weights)

    def _validate(self) -> Line:
        """Evaluate the weights, or their average if one is kept; keep them if they are the best."""
        current = self._copy() if self.average else None
        self.network.load(self.average)
        line = evaluate(self.model, self.val, self.device, self.rows)
        if not math.isfinite(line["val_loss"]):
            where = f"after phase {self.number}, epoch {self.epoch}"
            raise FloatingPointError(f"the validation loss is {line['val_loss']} {where}")
        self.stale_epochs += 1
        if line["val_loss"] < self.best_loss:
            self.stale_epochs, self.best_loss = 0, line["val_loss"]
            self.best = self._copy()
        if current is not None:
            self.network.load(current)
        return line

    def _save_checkpoint(self) -> None:
        """Write a checkpoint if one is due or the phase is over."""
        checkpoints = self.checkpoints if self.device.is_main_process else None
        if checkpoints is None or not (self._is_over() or checkpoints.due()):
            return
        checkpoint = Checkpoint(
            phase=self.number,
            epoch=self.epoch,
            stale_epochs=self.stale_epochs,
            best_loss=self.best_loss,
            history=self.history,
            weights=self._trained(),
            best=self.best,
            average=self.average,
            optimizer=optimizer_state(self.optimizer),
            scaler=self.device.scaler.state_dict(),
            micro_batches=self.device.micro_batches,
        )
        checkpoints.save(checkpoint)
