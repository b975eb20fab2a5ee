"""A fine-tuning of the tiny backbone, small enough to be run again and again.

As a script it is killed at a given moment: `course.py photos/ work/ step 7`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.kit.tiny import WIDTHS, Line, Seeded
from tlkit.data.preprocessing import load
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Augmentation, DatasetStatistics, Phase, Strategy
from tlkit.training.checkpoint import Checkpoints
from tlkit.training.device import Device
from tlkit.training.freezing import Network
from tlkit.training.history import Monitor
from tlkit.training.inputs import Examples
from tlkit.training.trainer import FitResult, Trainer

PHASES = (
    Phase(3, 0.05),
    Phase(3, 0.05, trunk_lr=0.02, trainable=1, batch_size=8, augmentation=Augmentation(crop=True), patience=5),
    Phase(3, 0.05, trunk_lr=0.02, trainable=3, batch_size=8, augmentation=Augmentation(crop=True), ema=0.5, reinit=1),
)


STAGES = tuple(WIDTHS)


@dataclass(frozen=True)
class Given(Strategy):
    """A strategy with given phases."""

    name = "given"
    given: tuple[Phase, ...] = ()

    def phases(self, stages: Sequence[str], facts: DatasetStatistics) -> Sequence[Phase]:
        return self.given


def fine_tuning(*phases: Phase, **others: Any) -> dict[str, Any]:
    """Return the fields of a `TrainingConfig` that run these phases on all three stages of the tiny backbone."""
    return {"strategy": Given(phases), "cut": "third", **others}


class Stopped(Exception):
    """The training was stopped after an epoch."""


class Stops(Monitor):
    """Stops a training after so many epochs."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def end_epoch(self, line: Any) -> None:
        super().end_epoch(line)
        self.left -= 1

    def step(self, images: int, line: Any) -> None:
        super().step(images, line)
        if self.left <= 0 and line:
            raise Stopped


class Killed(Monitor):
    """Kills its own process, as the system does, in a step of a number."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def step(self, images: int, line: Any) -> None:
        super().step(images, line)
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def splits(photos: Path, trunk: trunks.Trunk) -> list[Examples]:
    """Return three images of four to train on, the others to validate on."""
    files = sorted(photos.rglob("*.png"))
    classes = sorted({file.parent.name for file in files})
    found = []
    for chosen in ([n for n in range(len(files)) if n % 4], range(0, len(files), 4)):
        paths = [files[n] for n in chosen]
        labels = np.array([classes.index(path.parent.name) for path in paths])
        pixels = torch.from_numpy(np.stack([load(path, trunk.preprocessing) for path in paths]))
        with torch.no_grad():
            features = trunk(pixels).numpy()
        found.append(Examples(features, labels, paths))
    return found


def as_on_a_gpu() -> Device:
    """Return a CPU that is used as a GPU is: batches of one shape, crops made there, results read after some steps."""
    device = Device()
    device.fixed_shapes, device.crops, device.unread_steps = True, True, 3
    return device


def course(
    photos: Path,
    work: Path | None = None,
    *,
    phases: tuple[Phase, ...] = PHASES,
    monitor: Monitor | None = None,
    views: int = 2,
    cache: bool = True,
    device: Device | None = None,
    warn: Any = print,
    prepare: Any = lambda _stages: None,
) -> tuple[dict[str, torch.Tensor], FitResult]:
    """Run the training, or resume the one in `work`; return all weights at the end, and the history."""
    torch.manual_seed(3)
    trunk, head = trunks.build(Seeded()), Line().module(12, 3)
    checkpoints = None if work is None else Checkpoints(work, warn=warn, seconds=0)
    device, (train, val) = device or Device(), splits(photos, trunk)
    fitted = Trainer(
        Network(head, trunk, device.torch_device),
        phases,
        train,
        val,
        device=device,
        monitor=monitor or Monitor(),
        checkpoints=checkpoints,
        backbone=Seeded(),
        prepare=prepare,
        views=views,
        cache_dir=work if cache else None,
    ).fit()
    return {**trunk.state_dict(), **head.state_dict(prefix="head.")}, fitted


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return True if all weights are bit-identical."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def killed_in_a_checkpoint(at: int) -> None:
    """Have the process killed when a checkpoint is about to take its place."""
    replace, left = os.replace, [at]

    def last(source: Any, target: Any) -> None:
        left[0] -= "checkpoint" in str(target)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = last  # type: ignore[assignment]


if __name__ == "__main__":
    photos, work, when, number = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    if when == "checkpoint":
        killed_in_a_checkpoint(number)
    course(photos, work, monitor=Killed(number) if when == "step" else None)
