"""What a training is about to do, and what it does it to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tlkit.data.dataset import Dataset, Sample
from tlkit.errors import DataError
from tlkit.graph import trace
from tlkit.model.trunk import Trunk, fingerprint
from tlkit.plugin.contract import Backbone, DatasetStatistics, Head, Phase, Progress, Strategy, Tick, silent
from tlkit.plugin.options import to_json
from tlkit.runtime.features import Features, check_rejected, extract
from tlkit.training.checkpoint import SECONDS
from tlkit.training.device import Device, DeviceOptions
from tlkit.training.inputs import Examples, Images
from tlkit.training.tune import Split
from tlkit.version import __version__


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What to train: the three components, each with the (distribution, version) of the plugin it comes from."""

    backbone: Backbone
    strategy: Strategy
    head: Head
    origins: Mapping[str, tuple[str, str]]  # by kind
    cut: str | None = None
    size: int | None = None  # pixels of the input's side, if not the backbone's own
    val: float = 0.2
    max_bad: float = 0.01
    golden: int = 8
    seed: int = 0
    refit: bool = True  # solve the head again on a trunk that moved, where that loses nothing
    views: int = 4  # of each image in training, where it varies and stages are frozen; 0: another in every epoch
    cache: bool = True  # keep what frozen stages give for each view
    advice: Mapping[str, Any] = field(default_factory=dict)  # that led to it, kept in the bundle


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to go about it: on what, whether to go on where it was left off, and who is told of what."""

    choice: DeviceOptions = field(default_factory=DeviceOptions)
    resume: bool = False
    tensorboard: Path | None = None
    progress: Progress = silent
    warn: Callable[[str], None] = lambda _warning: None
    checkpoint_every: float = SECONDS


@dataclass(frozen=True, slots=True)
class Plan:
    """What `train` is about to do: the recipe, what it is done to, and what comes of it where."""

    source: Path
    out: Path
    recipe: TrainingConfig
    dataset: Dataset
    phases: tuple[Phase, ...]
    whole: Trunk  # all stages
    trunk: Trunk  # those up to the cut

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The images to train on, then those to validate on."""
        return (*self.dataset.of("train"), *self.dataset.of("val"))

    def extract(self, trunk: Trunk, tick: Tick) -> Features:
        """The features of all samples from the deployed graph of a trunk, which ends at the cut or behind it."""
        graph, samples = trace.stage_graph(trunk), self.samples
        paths = [sample.path for sample in samples]
        features = extract(paths, graph, trunk.preprocessing, trunk.names, self.trunk.names[-1], tick)
        check_rejected(features, paths, self.recipe.max_bad)
        _check_classes(features, samples)
        return features

    def splits(self, features: Features) -> tuple[Split, Split]:
        """What there is to learn from, and what to validate on: the images that can be used, with their features."""

        samples, preprocessing = self.samples, self.trunk.preprocessing

        def split(name: str) -> Split:
            rows = [row for row, sample in enumerate(samples) if sample.split == name and features.usable[row]]
            labels = np.array([samples[row].label for row in rows], np.int64)
            images = Images([samples[row].path for row in rows], labels, preprocessing)
            return Split(images, Examples(features.array[rows], labels))

        return split("train"), split("val")

    def conditions(self, machine: Device) -> dict[str, Any]:
        """On what stages move, and how images are seen: what decides the outcome besides recipe and data."""
        return {
            "views": self.recipe.views,
            "cache": self.recipe.cache,
            "device": machine.device.type,
            "precision": str(machine.format).removeprefix("torch."),
            "processes": machine.world_size,
        }

    def begun_with(self, features: Features, machine: Device) -> dict[str, Any]:
        """All that decides the outcome, as JSON: what a training that is taken up must have been begun with."""
        recipe = self.recipe
        components = {
            component.kind: {"name": component.name, **to_json(component)}
            for component in (recipe.strategy, recipe.head)
        }
        return {
            "tlkit": __version__,
            "backbone": {"name": recipe.backbone.name, **to_json(recipe.backbone)},
            "cut": self.trunk.names[-1],
            "size": self.trunk.preprocessing.size,
            **components,
            **{name: getattr(recipe, name) for name in ("val", "seed", "refit")},
            **self.conditions(machine),
            "phase": [asdict(phase) for phase in self.phases],
            "weights of the backbone": fingerprint(self.trunk)[:16],
            "images": {
                sample.name: f"{sample.split} {self.dataset.labels[sample.label]} {sha256[:16]}"
                for sample, sha256 in zip(self.samples, features.sha256, strict=True)
            },
        }


def facts(dataset: Dataset) -> DatasetStatistics:
    """What a strategy may know of the data."""
    samples = dataset.of("train")
    counts = np.bincount([sample.label for sample in samples], minlength=len(dataset.labels))
    return DatasetStatistics(len(samples), len(dataset.labels), int(counts.min()), int(counts.max()))


def _check_classes(features: Features, samples: Sequence[Sample]) -> None:
    """Refuse to go on where a class has lost all its images in a split."""
    for split in ("train", "val"):
        usable = {s.label for s, good in zip(samples, features.usable, strict=True) if good and s.split == split}
        lost = {s.label for s in samples if s.split == split} - usable
        if lost:
            example = next(s for s in samples if s.split == split and s.label in lost)
            raise DataError(f"no usable {split} image is left of its class", file=example.path, do="add some")
