"""The contract between tlkit and its plugins. Standard library only.

A component (a backbone, head, strategy, target or source) is a frozen dataclass. Its fields declared with `option` are
its options: `tlkit train --set head.pca=128` replaces the field `pca`, `tlkit plugins` lists it, a bundle stores it.
Declaring a component must be cheap: import torch and other frameworks in the method that needs them.

Every base class has one or two abstract methods and working defaults for the rest, so that a method added later
breaks no plugin. A plugin for another `CONTRACT` than the host's is listed as incompatible and never imported: it
declares the contract in its group of entry points, `[project.entry-points."tlkit.1"]`; `tlkit` alone means 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tlkit.plugin.blame import guard
from tlkit.plugin.component import Component as Component
from tlkit.plugin.component import Progress as Progress
from tlkit.plugin.component import Reader as Reader
from tlkit.plugin.component import Record as Record
from tlkit.plugin.component import Source as Source
from tlkit.plugin.component import Tick as Tick
from tlkit.plugin.component import mistyped
from tlkit.plugin.component import option as option
from tlkit.plugin.component import option_fields as option_fields
from tlkit.plugin.component import silent as silent
from tlkit.plugin.phases import BALANCES as BALANCES
from tlkit.plugin.phases import BATCHNORMS as BATCHNORMS
from tlkit.plugin.phases import OPTIMIZERS as OPTIMIZERS
from tlkit.plugin.phases import Augmentation as Augmentation
from tlkit.plugin.phases import Loss as Loss
from tlkit.plugin.phases import Optimizer as Optimizer
from tlkit.plugin.phases import Phase as Phase

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    Labels = NDArray[np.int64]

CONTRACT = 1  # version of this contract
IMBALANCED = 2.0  # times as many images in the largest class as in the smallest, from which class weights are tried

# Names of the tensors in exported graphs; export, targets and runtime use no others.
IMAGES = "images"  # uint8   (N, S, S, 3), RGB, as `tlkit.data.preprocessing.load` returns them
FEATURES = "features"  # float32 (N, width)
LOGITS = "logits"  # float32 (N, classes)
PROBABILITIES = "probabilities"  # float32 (N, classes), rows sum to 1 with the activation softmax
BATCH = "batch"  # name of the dynamic axis N

RGB = tuple[float, float, float]
LICENSE_CLASSES = ("permissive", "custom", "non-commercial", "unknown")
ACTIVATIONS = ("softmax", "sigmoid")
CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "box", "hamming", "nearest")


def _is_color(value: object) -> bool:
    numbers = value if isinstance(value, tuple) and len(value) == 3 else (math.nan,)
    return all(isinstance(each, int | float) and math.isfinite(each) for each in numbers)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Preprocessing from a decoded image to a network's input, as timm names it.

    `crop_mode` says which part of an image becomes `size` x `size` pixels. center: the centered square of side
    `crop_pct` x the shorter side; squash: the centered part of `crop_pct` x width and height, its ratio lost; border:
    the centered square of side `crop_pct` x the longer side, filled with `mean` outside the image. The graph computes
    `(x / 255 - mean) / std` per channel.
    """

    size: int  # pixels
    mean: RGB  # on the scale 0..1
    std: RGB
    crop_pct: float = 0.875
    crop_mode: str = "center"  # one of CROP_MODES
    interpolation: str = "bicubic"  # one of INTERPOLATIONS

    def __post_init__(self) -> None:
        problems = [f"{name} must be {wanted}" for name, wanted in mistyped(self).items()]
        if problems:
            raise ValueError(f"preprocessing: {'; '.join(problems)}")
        if self.size < 1:
            problems.append(f"size must be at least 1 pixel, not {self.size}")
        if not 0.0 < self.crop_pct <= 1.0:
            problems.append(f"crop_pct must lie in (0, 1], not {self.crop_pct}")
        if self.crop_mode not in CROP_MODES:
            problems.append(f"crop_mode must be one of {', '.join(CROP_MODES)}, not {self.crop_mode!r}")
        if self.interpolation not in INTERPOLATIONS:
            problems.append(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, not {self.interpolation!r}")
        if not all(map(_is_color, (self.mean, self.std))) or min(self.std) <= 0.0:
            problems.append("mean and std must be tuples of three finite numbers, std above 0")
        if problems:
            raise ValueError("preprocessing: " + "; ".join(problems))


@dataclass(frozen=True, slots=True)
class Weights:
    """Origin and license of pretrained weights."""

    origin: str  # package or URL
    license: str  # SPDX expression; a license that SPDX doesn't list is named `LicenseRef-...`
    sha256: str | None = None  # of the file, in hex
    license_class: str | None = None  # of a license that SPDX doesn't list: one of LICENSE_CLASSES

    def __post_init__(self) -> None:
        if problems := mistyped(self):
            raise ValueError(f"weights: {'; '.join(f'{name} must be {wanted}' for name, wanted in problems.items())}")


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """Counts over the training split, for strategies."""

    images: int
    classes: int
    smallest_class: int  # images in it
    largest_class: int


@dataclass(frozen=True, slots=True)
class OptimizationProfile:
    """Batch sizes that an engine is built for, as in TensorRT: it accepts `min` to `max` and is tuned for `opt`."""

    min: int = 1
    opt: int = 8
    max: int = 32


class Backbone(Component):
    """Pretrained network as an ordered list of named stages, shallow to deep; chained, they are the network."""

    kind = "backbone"
    preprocessing: Preprocessing
    weights: Weights
    graph: ClassVar[Path | None] = None  # file of the stages as an ONNX graph, see `tlkit.graph.trace.write_graph`

    @abstractmethod
    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        """Return new stages in order, in eval mode. The first takes float32 `(N, 3, S, S)`, normalized.

        With `pretrained=False` the weights are random and no weights file is read.
        """

    def pool(self) -> nn.Module | None:
        """Return the module from any stage's output to features `(N, width)`.

        None: the mean over height and width of `(N, C, H, W)`, or over tokens of `(N, T, C)`.
        """
        return None

    def classifier(self) -> nn.Module | None:
        """Return the pretrained classifier, from the deepest stage's features to the original logits, or None."""
        return None


class Head(Component):
    """Classifier from features to logits: always a module of core ONNX operators, however it was fitted."""

    kind = "head"
    scores: ClassVar[tuple[str, ...]] = ()  # more outputs, float32 (N,): what the module's `scores(features)` returns
    activation: ClassVar[str] = "softmax"  # logits to probabilities, one of ACTIVATIONS; sigmoid: classes may overlap

    @abstractmethod
    def module(self, width: int, classes: int) -> nn.Module:
        """Return an untrained module `(N, width) -> (N, classes)` that can be trained by gradient descent.

        Raises `tlkit.errors.UsageError` if the head can only be fitted with `solve`.
        """

    def solve(self, features: NDArray[np.float32], labels: Labels, classes: int, seed: int) -> nn.Module | None:
        """Fit features `(N, width)` to labels `(N,)` in 0..classes-1; None: train `module` by gradient descent."""
        return None

    def solve_grouped(
        self, features: NDArray[np.float32], labels: Labels, classes: int, seed: int, groups: Labels
    ) -> nn.Module | None:
        """Fit as `solve` does; a cross-validation holds out whole `groups` `(N,)`, such as frames of one video."""
        return self.solve(features, labels, classes, seed)

    def candidates(self, info: DatasetStatistics) -> Sequence[Head]:
        """Return configurations of this head to compare with it, such as class weights if `info` is imbalanced."""
        return ()

    def restore(self, width: int, classes: int, tensors: Mapping[str, Any]) -> nn.Module:
        """Return the fitted module whose state dict `tensors` is."""
        module = self.module(width, classes)
        module.load_state_dict(tensors)
        return module.eval()

    def stand_in(self) -> Head | None:
        """Return the head to train while stages are trainable, for one that can only be solved, at the end; or None."""
        return None

    def report(self, solved: nn.Module) -> Mapping[str, Any]:
        """Return facts about a fit by `solve`, as JSON: the bundle stores them; by default its attribute `report`.

        Heads are compared by `cv_balanced_accuracy` or else `cv_accuracy` (0 to 1) and `cv_log_loss` (mean, in nats),
        from a cross-validation on the features that `solve` got. A head that reports none is not recommended.
        """
        return getattr(solved, "report", {})


class Strategy(Component):
    """Training plan: a pure function from stage names and dataset statistics to a list of phases."""

    kind = "strategy"

    @abstractmethod
    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        """Return the phases in order; `stages` names the trunk's stages, shallow to deep."""

    def cut(self, stages: Sequence[str], info: DatasetStatistics) -> str:
        """Return the last stage to keep, unless the user names one."""
        return stages[-1]

    def prepare(self, stages: Mapping[str, nn.Module]) -> Callable[[], None] | None:
        """Change the trunk's stages before the first phase, in place, and return the function that undoes it, or None.

        For adapters: parametrize modules, train the new parameters (see `Phase.parameters`), and merge them into the
        original weights. Afterwards the stages must have their original structure and compute the same.
        """
        return None

    def candidates(self, info: DatasetStatistics) -> Sequence[Strategy]:
        """Return configurations of this strategy for `auto` and `advise` to try; it is not tried by default.

        The time of a candidate is estimated from its phases; one with an option `epochs` is tried with fewer of them if
        the budget asks for it.
        """
        return ()


class Session(ABC):
    """Opened export: one array in, named arrays out."""

    input: str  # IMAGES or FEATURES
    outputs: tuple[str, ...]  # FEATURES, LOGITS, PROBABILITIES, scores of the head: those of the graph
    metadata: Mapping[str, str]  # of the graph
    workers: int = 1  # number of threads that gain throughput by calling `run` concurrently
    batch_size: int = 8  # rows per call with the best throughput
    gpu_seconds: float | None = None  # GPU time of the last call, if it was measured

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        guard(cls)

    @abstractmethod
    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        """Return float32 arrays by name, all of `self.outputs` by default, with the rows of `array` `(N, ...)`."""

    def close(self) -> None:  # noqa: B027 - most sessions hold nothing that has to be released
        """Release what the session holds; it can't run afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class BuildSource:
    """One graph of a bundle (trunk, head or model) to build from: an ONNX file and a PyTorch module."""

    graph: Path  # ONNX file
    input: str  # IMAGES or FEATURES
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]
    module: Callable[[], nn.Module]  # in eval mode: input -> tuple of outputs; UsageError in int8
    example: Callable[[int], NDArray[Any]]  # so many inputs: images uint8 (n, S, S, 3), features float32 (n, width)


class Target(Component):
    """Runtime format: build a file or a folder from a graph, and open it."""

    kind = "target"
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)  # also fp16, int8 (uint8 activations), int8-symmetric
    suffix: ClassVar[str]  # of the file or folder, such as ".onnx"
    executable: ClassVar[bool] = False  # opening it runs code in it: what was built elsewhere is not opened

    def machine(self) -> Mapping[str, str]:
        """Return the properties of this machine that what is built here depends on, such as the GPU."""
        return {}

    def missing(self) -> str | None:
        """Return the reason that this target can't run here, with the command that installs it, or None."""
        return None

    @abstractmethod
    def build(self, made: BuildSource, out: Path, profile: OptimizationProfile, progress: Progress) -> None:
        """Write `out`, a file or a folder, from one of the forms of `made`."""

    @abstractmethod
    def open(self, place: Path) -> Session:
        """Open what `build` wrote. A format that keeps no metadata leaves it empty: the manifest has them."""

    def incompatible(self, recorded: Mapping[str, str]) -> str | None:
        """Return the reason that what was built with these options on another machine can't be opened here, or None.

        `recorded` is what `machine` returned there; by default every property has to be equal here.
        """
        here = self.machine() if recorded else {}
        for name, value in recorded.items():
            if here.get(name) != value:
                return f"it was built for {name} {value}, and this machine has {here.get(name)}"
        return None
