"""The trainer: runs a list of phases on a network.

Everything random in an epoch follows from the seed, the phase and the epoch, whatever came before, so an interrupted
run reaches the same weights after it is resumed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tlkit.errors import DataError
from tlkit.plugin.contract import Backbone, Phase
from tlkit.training.activation_cache import ActivationCache, open_cache
from tlkit.training.batchnorm import batch_norms, training_batch_norms
from tlkit.training.checkpoint import Checkpoint, Checkpoints, load_optimizer_state, optimizer_state
from tlkit.training.device import Device
from tlkit.training.freezing import Network, check_frozen, depth_of, stage_hashes
from tlkit.training.gradients import fast_gradients
from tlkit.training.history import Line, Monitor, learning_rates
from tlkit.training.inputs import AugmentedViews, Batches, DecodedImages, Examples, mixing, split_batches
from tlkit.util.resources import keep_freed_memory

VAL_BATCH_SIZE = 64

Inputs = Examples | DecodedImages | ActivationCache


@dataclass(frozen=True, slots=True)
class FitResult:
    """One line per epoch; where the loss became NaN or infinite, if it did; the stages whose weights changed."""

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
    views: int = 0
    cache_dir: Path | None = None

    phase: Phase = field(init=False)
    model: nn.Module = field(init=False)  # what the phase trains, from its inputs to logits
    train: Inputs = field(init=False)
    val: Inputs = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    average: AveragedModel | None = field(init=False)  # of the weights, if the phase keeps one
    frozen_norms: Sequence[nn.Module] = field(init=False)  # batch norms whose running statistics stay

    def __post_init__(self) -> None:
        self.trainable = max(depth_of(phase, self.network.stages) for phase in self.phases)
        self.trained = self.network.trained_modules(self.trainable)
        labels = self.train_examples.labels
        counts = np.bincount(labels)
        self.balance = len(labels) / (len(counts) * np.maximum(counts, 1))  # by class, mean 1 over the images
        self.class_weights = self.device.put(torch.from_numpy(self.balance.astype(np.float32)))
        self.history: list[Line] = []
        self.number = self.epoch = self.stale_epochs = 0  # phase and epoch from 1; epochs since the best one
        self.best_loss, self.best = math.inf, dict[str, Tensor]()

    def fit(self) -> FitResult:
        """Run all phases and leave the network, on the CPU, with its best weights.

        Starts from the newest checkpoint. A loss that becomes NaN or infinite ends training with the best weights
        before it, or raises a DataError if there are none. Raises a GateError if a stage that no phase trains changed.
        """
        trunk, head, device = self.network.trunk, self.network.head, self.device
        if trunk is None:
            diverged = self._run_phases()
            head.to("cpu").eval()
            return FitResult(self.history, diverged)
        before, stages = stage_hashes(trunk), self.network.stages
        with (
            keep_freed_memory(),
            fast_gradients(device.torch_device, trunk.pool),
            training_batch_norms(stages[len(stages) - self.trainable :], shared=device.world_size > 1),
        ):
            diverged = self._run_phases()
        trunk.to("cpu").to(memory_format=torch.contiguous_format)
        head.to("cpu").eval()
        changed = check_frozen(trunk, before, self.trainable)
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
            except FloatingPointError as error:
                if not self.best:
                    raise DataError(str(error), do="use smaller learning rates") from error
                self.trained.load_state_dict(self.best)
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
        if self.best:
            self.trained.load_state_dict(self.best)

    def _is_over(self) -> bool:
        return self.epoch == self.phase.epochs or self.stale_epochs == self.phase.patience > 0

    def _start_phase(self, checkpoint: Checkpoint | None) -> None:
        """Set up model, inputs, optimizer and average, as they are in the checkpoint if there is one."""
        phase = self.phase
        self.epoch = self.stale_epochs = 0
        if checkpoint is not None:
            self.epoch, self.stale_epochs = checkpoint.epoch, checkpoint.stale_epochs
            self.best_loss, self.best = checkpoint.best_loss, checkpoint.best
            self.trained.load_state_dict(checkpoint.weights)
        elif phase.reinit:
            assert self.backbone is not None  # noqa: S101 - a head alone has no stages to reinitialize
            self.network.reinitialize(self.backbone, phase.reinit, self.seed)
            self.best_loss, self.best = math.inf, {}
        self._set_model_and_inputs()
        self.mix = mixing(phase, len(self.balance))
        self.average = None
        if phase.ema:
            average = get_ema_multi_avg_fn(phase.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.trained, multi_avg_fn=average, use_buffers=True)
            self.average.update_parameters(self.trained)  # it begins with the weights before the first step
        self.optimizer = self.network.optimizer(phase)
        self.parallel_model = self.device.prepare(self.model)
        if checkpoint is not None:
            if self.average is not None:
                self.average.load_state_dict(checkpoint.average)
            load_optimizer_state(self.optimizer, checkpoint.optimizer)
            self.device.scaler.load_state_dict(checkpoint.scaler)

    def _set_model_and_inputs(self) -> None:
        """Until stages were trained, a phase without trainable ones uses the features of the deployed trunk."""
        phase, trunk = self.phase, self.network.trunk
        if trunk is None or not any(each.trainable for each in self.phases[: self.number]):
            self.model, self.frozen_norms = self.network.head, ()
            self.train, self.val = self.train_examples, self.val_examples
            return
        frozen, self.model = self.network.split(depth_of(phase, trunk.names))
        reinitialized = max(each.reinit for each in self.phases[: self.number])
        pretrained = self.network.stages[: len(trunk.names) - reinitialized]
        self.frozen_norms = batch_norms(pretrained) if phase.batchnorm == "freeze" else ()
        train_views = AugmentedViews.from_phase(phase, trunk.preprocessing, self.seed, self.views)
        val_views = AugmentedViews(trunk.preprocessing, self.seed)
        splits = (self.train_examples, train_views), (self.val_examples, val_views)
        first = len(trunk.names) - depth_of(phase, trunk.names)
        repeats = phase.epochs > 1 and (self.views > 0 or not train_views.varies)  # an image is seen again as it was
        if self.cache_dir is None or not repeats or not 0 < first < len(trunk.names):
            self.train, self.val = (DecodedImages(*each, frozen, self.device.torch_device) for each in splits)
            return
        stages = trunk.upto(trunk.names[first - 1])
        self.train, self.val = open_cache(self.cache_dir, stages, frozen, *splits, self.device, self.monitor.progress)

    def _train_epoch(self) -> Line:
        """Take the steps of one epoch; return its line, with the learning rates of its first step."""
        phase, device = self.phase, self.device
        random = np.random.SeedSequence([self.seed, self.number, self.epoch])
        torch.manual_seed(int(random.generate_state(1)[0]))  # for dropout and the like
        batches = self._batches(np.random.default_rng(random))
        shards = [device.shard(rows) for rows in batches]
        first, steps = (self.epoch - 1) * len(batches), phase.epochs * len(batches)
        self.model.train()
        for module in self.frozen_norms:
            module.eval()
        loss_sum = correct = seen = 0.0
        # Views are counted through all phases.
        inputs = self.train.batches([own for own, _ in shards], len(self.history) + 1)
        for step, (rows, (own, weight), x) in enumerate(zip(batches, shards, inputs, strict=True), first):
            factor = lr_factor(step, steps, phase.optimizer.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = factor * group["highest_lr"]
            loss, hits = self._step(x, self.train.labels[own], weight)
            loss, hits = device.all_sum([loss * len(rows) / device.world_size, hits])
            if not math.isfinite(loss):
                where = f"at step {step - first + 1} of phase {self.number}, epoch {self.epoch}"
                rates = " and ".join(f"{name} {lr:.3g}" for name, lr in learning_rates(phase, factor).items())
                raise FloatingPointError(f"the loss is {loss} {where}, with {rates}")
            loss_sum, correct, seen = loss_sum + loss, correct + hits, seen + len(rows)
            running = {"loss": loss_sum / seen, "accuracy": correct / seen, "lr": factor * phase.head_lr}
            self.monitor.step(len(rows), running)
        line: Line = {"phase": self.number, "epoch": self.epoch}
        line |= learning_rates(phase, lr_factor(first, steps, phase.optimizer.warmup))
        return line | {"train_loss": loss_sum / seen, "train_accuracy": correct / seen}

    def _batches(self, random: np.random.Generator) -> Batches:
        labels = self.train.labels
        if self.phase.loss.balance == "sampling":  # as many draws as images, each class as likely as any
            shares = self.balance[labels] / self.balance[labels].sum()
            return split_batches(random.choice(len(labels), len(labels), p=shares), self.phase.batch_size)
        return split_batches(random.permutation(len(labels)), self.phase.batch_size)

    def _step(self, x: Tensor, labels: NDArray[np.int64], weight: float) -> tuple[float, float]:
        """Take one step; return the mean loss of this process's images, times `weight`, and the correct ones."""
        device, (x, target) = self.device, (self.device.put(x), self.device.put(torch.from_numpy(labels)))
        if self.mix is not None:
            x, target = self.mix(x, target)
        loss, correct = device.within_memory(lambda parts: self._backward(x, target, weight, parts), len(labels))
        if math.isfinite(loss):
            if self.phase.optimizer.gradient_clipping:
                device.scaler.unscale_(self.optimizer)
                parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(parameters, self.phase.optimizer.gradient_clipping)
            device.scaler.step(self.optimizer)
            device.scaler.update()
            if self.average is not None:
                self.average.update_parameters(self.trained)
        return loss, correct if weight else 0.0

    def _backward(self, x: Tensor, target: Tensor, weight: float, parts: int) -> tuple[float, float]:
        """Compute the gradients of a batch's mean loss, in so many micro-batches."""
        self.optimizer.zero_grad()
        loss_sum = correct = 0.0
        for inputs, truth in zip(x.tensor_split(parts), target.tensor_split(parts), strict=True):
            with self.device.autocast():
                logits = self.parallel_model(inputs)
            loss = self._losses(logits.float(), truth).sum() * (weight / len(target))
            self.device.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item()
            correct += int((logits.argmax(1) == (truth if truth.ndim == 1 else truth.argmax(1))).sum())
        return loss_sum, correct

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, target, label_smoothing=self.phase.loss.label_smoothing, reduction="none")
        if self.phase.loss.balance != "weights":
            return losses
        return losses * (self.class_weights[target] if target.ndim == 1 else target @ self.class_weights)

    def _validate(self) -> Line:
        """Evaluate the weights, or their average if one is kept; keep them if they are the best."""
        current = None
        if self.average is not None:
            current = copy.deepcopy(self.trained.state_dict())
            self.trained.load_state_dict(self.average.module.state_dict())
        line = evaluate(self.model, self.val, self.device)
        if not math.isfinite(line["val_loss"]):
            where = f"after phase {self.number}, epoch {self.epoch}"
            raise FloatingPointError(f"the validation loss is {line['val_loss']} {where}")
        self.stale_epochs += 1
        if line["val_loss"] < self.best_loss:
            self.stale_epochs, self.best_loss = 0, line["val_loss"]
            self.best = copy.deepcopy(self.trained.state_dict())
        if current is not None:
            self.trained.load_state_dict(current)
        return line

    def _save_checkpoint(self) -> None:
        """Write a checkpoint if one is due or the phase is over."""
        if self.checkpoints is None or not self.device.is_main_process:
            return
        if not self._is_over() and not self.checkpoints.due():
            return
        checkpoint = Checkpoint(
            phase=self.number,
            epoch=self.epoch,
            stale_epochs=self.stale_epochs,
            best_loss=self.best_loss,
            history=self.history,
            weights=self.trained.state_dict(),
            best=self.best,
            average={} if self.average is None else self.average.state_dict(),
            optimizer=optimizer_state(self.optimizer),
            scaler=self.device.scaler.state_dict(),
        )
        self.checkpoints.save(checkpoint)


def fit_head(
    head: nn.Module,
    phases: Sequence[Phase],
    train: Examples,
    val: Examples,
    *,
    seed: int = 0,
    device: Device | None = None,
    monitor: Monitor | None = None,
) -> tuple[nn.Module, FitResult]:
    """Train a head on features, in place; return it in eval mode with the weights of its best epoch on `val`."""
    device, monitor = device or Device(), monitor or Monitor()
    network = Network(head, device=device.torch_device)
    return head, Trainer(network, phases, train, val, seed=seed, device=device, monitor=monitor).fit()


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Return the share of the highest learning rate in a step of a phase: linear warmup, then half a cosine.

    Loshchilov and Hutter, "SGDR", ICLR 2017; the warmup of Goyal et al., "Accurate, Large Minibatch SGD", 2017.
    """
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def evaluate(model: nn.Module, inputs: Inputs, device: Device) -> Line:
    """Return mean cross-entropy and accuracy."""
    batches = np.split(np.arange(len(inputs.labels)), range(VAL_BATCH_SIZE, len(inputs.labels), VAL_BATCH_SIZE))
    model.eval()
    with torch.inference_mode(), device.autocast():
        logits = torch.cat([model(device.put(x)) for x in inputs.batches(batches, 0)]).float()
        truth = device.put(torch.from_numpy(inputs.labels))
        loss = F.cross_entropy(logits, truth).item()
        return {"val_loss": loss, "val_accuracy": (logits.argmax(1) == truth).float().mean().item()}
