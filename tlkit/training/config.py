"""Configuration of a training, the plan that follows from it and the data, and the validation of its phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from tlkit.data.dataset import Dataset, Sample, groups_of
from tlkit.data.duplicates import Duplicates
from tlkit.errors import DataError, UsageError
from tlkit.graph import trace
from tlkit.model.trunk import Trunk, fingerprint
from tlkit.plugin.contract import Backbone, Head, Phase, Strategy, Tick
from tlkit.plugin.detection import Detector
from tlkit.plugin.phases import phase_problems, trainable_stages
from tlkit.plugin.sources import identity
from tlkit.runtime.feature_cache import environment
from tlkit.runtime.features import Features, check_rejected, extract
from tlkit.training.blending import Blend
from tlkit.training.checkpoint import SECONDS
from tlkit.training.device import Device, DeviceOptions
from tlkit.training.inputs import Examples
from tlkit.training.run_directory import MACHINE, machine
from tlkit.util.arrays import take
from tlkit.util.text import listed
from tlkit.version import __version__


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """The three components, each with the (distribution, version) of its plugin, and what decides the outcome."""

    backbone: Backbone
    strategy: Strategy
    head: Head
    origins: Mapping[str, tuple[str, str]]  # by kind
    cut: str | None = None
    size: int | None = None  # side of the input in pixels, if not the backbone's own
    val: float = 0.2
    group: str | None = None  # regular expression over names: images with the same match stay together
    max_bad: float = 0.01
    golden: int = 8
    golden_strip: bool = False  # keep no names of files, and no golden image with metadata
    seed: int = 0
    refit: bool = True  # solve the head again on a fine-tuned trunk, if that loses nothing; after a stand-in always
    views: int = 4  # augmented views cached per image while stages are frozen; 0: a new one every epoch
    cache: bool = True  # the output of the frozen stages for each view
    blend: Blend = 1.0  # share of the fine-tuning in the weights of the trunk; "auto": chosen on the validation images
    advice: Mapping[str, Any] = field(default_factory=dict)  # kept in the bundle
    detectors: Mapping[Detector, tuple[str, str]] = field(default_factory=dict)  # to choose from, with their plugins


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Device, resumption, logging and checkpoints: options that should not change the outcome."""

    device: DeviceOptions = field(default_factory=DeviceOptions)
    resume: bool = False
    tensorboard: Path | None = None
    warn: Callable[[str], None] = lambda _warning: None
    checkpoint_seconds: float = SECONDS  # between checkpoints within a phase
    announce: bool = True  # begin with the classes and their counts
    strict: bool = False  # refuse identical files in two splits or with two labels


@dataclass(frozen=True, slots=True)
class Plan:
    """A training that is about to run: configuration, data, phases, and the trunk with and without the cut."""

    source: Path
    out: Path
    config: TrainingConfig
    dataset: Dataset
    duplicates: Duplicates
    phases: tuple[Phase, ...]
    full_trunk: Trunk
    trunk: Trunk  # up to the cut
    rejected: Mapping[str, str] = field(default_factory=dict)  # unreadable images, not in `dataset`: reasons by name

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Training samples, then validation samples."""
        return (*self.dataset.of("train"), *self.dataset.of("val"))

    @property
    def classes(self) -> int:
        return len(self.dataset.labels)

    @property
    def trainable(self) -> bool:
        """True if a phase trains stages of the trunk."""
        return any(phase.trainable for phase in self.phases)

    def extract(self, trunk: Trunk, tick: Tick) -> Features:
        """Return the features of all samples at the cut, from the deployed graph of a trunk that contains it."""
        graph, samples = trace.stage_graph(trunk), self.samples
        paths = [sample.path for sample in samples]
        features = extract(paths, graph, trunk.preprocessing, trunk.names, self.trunk.cut, tick)
        check_rejected(features, paths, self.config.max_bad)
        return features

    def read(self, tick: Tick) -> tuple[Plan, Features]:
        """Return the plan with the readable images alone, split among themselves, and their features.

        The features are those of the original trunk. Raises DataError if a class has no image left to train on.
        """
        features, before = self.extract(self.full_trunk, tick), self.samples
        rejected = {before[row].name: reason for row, reason in features.rejected.items()}
        plan = replace(self, dataset=self.dataset.without(rejected), rejected=rejected)
        rows = {sample.name: row for row, sample in enumerate(before)}
        _check_classes(plan.dataset, [before[row].path for row in features.rejected])
        return plan, features.rows([rows[sample.name] for sample in plan.samples])

    def examples(self, features: Features) -> tuple[Examples, Examples]:
        """Return the readable images to train on, and those to validate on, with their features."""
        everything = self.samples

        def of(split: str) -> Examples:
            rows = [row for row, each in enumerate(everything) if each.split == split and features.usable[row]]
            samples = [everything[row] for row in rows]
            labels = np.array([sample.label for sample in samples], np.int64)
            paths, groups = [sample.path for sample in samples], groups_of(samples)
            return Examples(take(features.array, rows), labels, paths, groups)

        return of("train"), of("val")

    def settings(self, device: Device) -> dict[str, Any]:
        """Return what decides the outcome of fine-tuning besides configuration and data, as JSON."""
        return {
            "views": self.config.views,
            "cache": self.config.cache,
            "blend": self.config.blend,
            "device": device.type,
            "precision": str(device.dtype).removeprefix("torch."),
            "world_size": device.world_size,
            "compile": device.compile,
            "tf32": device.tf32,
        }

    def identity(self, features: Features, device: Device) -> dict[str, Any]:
        """Return everything that decides the outcome, as JSON: a resumed run must have the same."""
        config = self.config
        return {
            "tlkit": __version__,
            **{each.kind: identity(each) for each in (config.backbone, config.strategy, config.head)},
            "detectors": {each.name: identity(each) for each in config.detectors},
            "cut": self.trunk.cut,
            "size": self.trunk.preprocessing.size,
            **{name: getattr(config, name) for name in ("val", "group", "seed", "refit")},
            **self.settings(device),
            "phase": [asdict(phase) for phase in self.phases],
            "backbone_weights": fingerprint(self.trunk)[:16],
            **environment(),
            MACHINE: machine(),
            "images": {
                sample.name: f"{sample.split} {self.dataset.labels[sample.label]} {sha256[:16]}"
                for sample, sha256 in zip(self.samples, features.sha256, strict=True)
            },
        }


def identical(features: Features, samples: Sequence[Sample], labels: Sequence[str]) -> list[str]:
    """Return a line for each class all of whose images have the same features, which nothing can be learned from."""
    rows: dict[int, list[int]] = {}
    for row, each in enumerate(samples):
        if features.usable[row]:
            rows.setdefault(each.label, []).append(row)
    return [
        f"all {len(same)} images of {labels[label]} have identical features; look at some of them"
        for label, (first, *others) in sorted(rows.items())
        if (same := [first, *others])[1:]
        and all((features.array[row] == features.array[first]).all() for row in others)
    ]


def _check_classes(dataset: Dataset, unreadable: Sequence[Path]) -> None:
    """Raise a DataError if the readable images leave a class none to train on, or none to validate on at all."""
    lost = [label for label, count in dataset.counts("train").items() if not count]
    if lost or not dataset.of("val"):
        what = f"no readable image to train on is left of {listed(lost)}" if lost else "no readable val image is left"
        do = f"replace or remove the unreadable files, such as {unreadable[0]}" if unreadable else "add some"
        raise DataError(what, file=dataset.root, do=f"{do}, and add others of the class" if lost else do)


def check_batches(phases: Sequence[Phase], head: nn.Module, trunk: Trunk) -> None:
    """Raise a UsageError for a batch size of one where a trained part computes statistics of the batch."""
    for number, phase in enumerate(phases, start=1):
        stages = [trunk.stages[name] for name in trainable_stages(phase, trunk.names)]
        learning = [head, *(stages if phase.batchnorm == "update" else [])]
        if phase.batch_size == 1 and any(isinstance(each, BatchNorm) for part in learning for each in part.modules()):
            what = f"phase {number} has a batch size of 1, and batch norms can't learn from one image"
            raise UsageError(what, do="set strategy.batch_size to 2 or more")


def check_phases(phases: Sequence[Phase], stages: Sequence[str], who: str = "the strategy") -> None:
    """Raise a UsageError that lists all problems of phases that can't run; `who` names their strategy."""
    problems = [
        f"phase {number} {problem}"
        for number, phase in enumerate(phases, start=1)
        for problem in phase_problems(phase, stages).values()
    ]
    if not phases:
        problems.append("there are no phases")
    if problems:
        raise UsageError(f"{who} can't be run: {'; '.join(problems)}")
