"""The course of a training: progress, a log of the epochs, TensorBoard, and curves."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlkit.errors import ResourceError
from tlkit.plugin.contract import Phase, Progress, silent
from tlkit.util.files import atomic_file, translate_os_errors

LOG = "history.jsonl"
CURVES = "curves.png"

Line = dict[str, Any]  # one epoch of the history


class Monitor:
    """Reports each step to a progress bar per phase, and each epoch to a log and to TensorBoard."""

    def __init__(
        self, progress: Progress = silent, *, phases: int = 1, log: Path | None = None, tensorboard: Path | None = None
    ) -> None:
        self.progress, self.phases, self.log = progress, phases, log
        self.board = None if tensorboard is None else _summary_writer(tensorboard)
        self.tick = silent("", 0)
        self.began, self.images = time.perf_counter(), 0
        self.lines: list[Line] = []  # epochs of this run, with their times

    def start_phase(self, number: int, total: int, done: int) -> None:
        """Start a phase of `total` images, of which `done` were trained on before this run."""
        self.tick = self.progress(f"phase {number} of {self.phases}" if self.phases > 1 else "training", total)
        self.tick(done)
        self.began, self.images = time.perf_counter(), 0

    def step(self, images: int, line: Mapping[str, float]) -> None:
        """Count more images; `line` has loss, accuracy and learning rate of the epoch so far."""
        self.images += images
        scores = f"loss {line['loss']:.3f}, accuracy {line['accuracy']:.1%}"
        self.tick(images, f"{scores}, {self.images_per_second():.0f} images/s, lr {line['lr']:.1e}")

    def images_per_second(self) -> float:
        """Return the speed since the epoch began."""
        return self.images / max(time.perf_counter() - self.began, 1e-9)

    def end_epoch(self, line: Mapping[str, Any]) -> None:
        """Record an epoch with its seconds and images per second."""
        seconds = time.perf_counter() - self.began
        timed = {**line, "seconds": round(seconds, 3), "images_per_second": round(self.images_per_second(), 1)}
        self.lines.append(timed)
        if self.log is not None:
            with translate_os_errors(self.log), self.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(timed) + "\n")
        if self.board is not None:
            for name, value in timed.items():
                if name not in ("phase", "epoch"):
                    self.board.add_scalar(name, value, len(self.lines))
            self.board.flush()
        self.began, self.images = time.perf_counter(), 0


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        what = "TensorBoard is not installed"
        raise ResourceError(what, file=folder, do='run: pip install "tlkit[tensorboard]"') from error
    with translate_os_errors(folder):
        return SummaryWriter(str(folder))


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Return the share of the highest learning rate in a step of a phase: linear warmup, then half a cosine.

    Loshchilov and Hutter, "SGDR", ICLR 2017; the warmup of Goyal et al., "Accurate, Large Minibatch SGD", 2017.
    """
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def learning_rates(phase: Phase, factor: float) -> Line:
    """Return the learning rates of the head and of the deepest stage, if that trains, as the history has them."""
    return {"lr": factor * phase.head_lr} | ({"trunk_lr": factor * phase.trunk_lr} if phase.trainable else {})


def draw_curves(history: Sequence[Mapping[str, Any]], bundle: Path) -> Path | None:
    """Draw loss, accuracy and learning rates over the epochs into a bundle, whose identity it is no part of.

    Returns None without epochs, or without matplotlib.
    """
    epochs = [line for line in history if "epoch" in line]
    if not epochs or importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(13, 4), layout="constrained")
    curves = {
        "loss": ("train_loss", "val_loss"),
        "accuracy": ("train_accuracy", "val_accuracy"),
        "highest learning rates": ("lr", "trunk_lr"),
    }
    phase_ends = [n - 0.5 for n in range(1, len(epochs)) if epochs[n]["phase"] != epochs[n - 1]["phase"]]
    for axes, (title, names) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        for name in names:
            axes.plot([line.get(name) for line in epochs], label=name.replace("_", " "))
        for end in phase_ends:
            axes.axvline(end, color="grey", linestyle=":", linewidth=1)
        axes.set(title=title, xlabel="epoch")
        axes.legend()
    with atomic_file(bundle / CURVES) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return bundle / CURVES
