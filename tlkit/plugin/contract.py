"""What a plugin author writes against. Standard library only.

A component (a backbone, head, strategy or target) is a frozen dataclass. Its fields declared with `option` are its
options: `tlkit train --set head.pca=128` replaces the field `pca`, `tlkit plugins` lists it, the bundle
stores it. Declaring a component must be cheap: import torch and friends inside the method that needs them.

Every base class has one or two abstract methods and working defaults for the rest, so that a method added
later breaks no plugin.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

# The tensors that graphs exchange. Export, targets and runtime use these names and no others.
IMAGES = "images"  # uint8   (N, S, S, 3), RGB, as `tlkit.data.preprocessing.load` returns them
FEATURES = "features"  # float32 (N, width)
LOGITS = "logits"  # float32 (N, classes)
PROBABILITIES = "probabilities"  # float32 (N, classes), rows sum to 1
BATCH = "batch"  # the name of the dynamic axis N

RGB = tuple[float, float, float]
OPTIMIZERS = ("adamw", "sgd")
BALANCES = ("none", "weights", "sampling")
BATCHNORMS = ("freeze", "update")
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "box", "hamming", "nearest")


def option(default: Any, help: str, *, choices: Sequence[Any] | None = None) -> Any:
    """Declare one option of a component: a dataclass field with its default, help text and allowed values."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The recipe from a decoded picture to a network's input. It travels with the weights.

    The centred square of side `crop` x the shorter side is resampled with `filter` to `size` x `size` pixels;
    inside the graph each channel becomes `(x / 255 - mean) / std`. `mean` and `std` are on the scale 0..1.
    """

    size: int
    mean: RGB
    std: RGB
    crop_pct: float = 0.875
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        problems = []
        if self.size < 1:
            problems.append(f"size must be at least 1 pixel, not {self.size}")
        if not 0.0 < self.crop_pct <= 1.0:
            problems.append(f"crop must lie in (0, 1], not {self.crop_pct}")
        if self.interpolation not in INTERPOLATIONS:
            problems.append(f"filter must be one of {', '.join(INTERPOLATIONS)}, not {self.interpolation!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0.0:
            problems.append("mean and std must have three entries, std above 0")
        if problems:
            raise ValueError("pixel recipe: " + "; ".join(problems))


@dataclass(frozen=True, slots=True)
class Weights:
    """Where pretrained weights come from: a package or address, their licence, and the file's SHA-256 (hex)."""

    origin: str
    license: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """What a strategy may know of the data: counts over the training split."""

    images: int
    classes: int
    smallest_class: int
    largest_class: int


@dataclass(frozen=True, slots=True)
class Phase:
    """One piece of training. Learning rates are per optimiser step; `decay` multiplies per stage going shallower.

    `moving` counts the deepest stages that learn; `restart` the deepest stages that begin from random weights.
    """

    epochs: int
    head_lr: float
    trunk_lr: float = 0.0  # of the deepest stage
    trainable: int = 0
    lr_decay: float = 1.0
    reinit: int = 0
    batch_size: int = 64
    optimizer: str = "adamw"  # or another of OPTIMISERS
    warmup: float = 0.0  # share of the steps in which the rates rise; in the rest they fall, along a cosine
    label_smoothing: float = 0.0  # of the labels
    gradient_clipping: float = 0.0  # the norm that longer gradients are scaled to; 0 for none
    patience: int = 0  # epochs without a lower validation loss that end it; 0 for none
    augment: bool = False  # whether every epoch sees a random crop of each image, mirrored or not, where stages move
    randaugment: int = 0  # magnitude, up to 30, of two random distortions of each image, where stages move; 0 for none
    mixup: float = 0.0  # images are mixed in pairs, by shares drawn from Beta(this, this); 0 for none
    cutmix: float = 0.0  # the same with pieces cut out of one and put into the other, where there is space
    balance: str = "none"  # or another of BALANCES: what makes up for classes with few images
    batchnorm: str = "freeze"  # or "update": running statistics of batch norms in trainable stages
    ema: float = 0.0  # the share that a moving average of the weights keeps in a step; 0 for the weights themselves


@dataclass(frozen=True, slots=True)
class OptimizationProfile:
    """The batch sizes that an engine is built for."""

    smallest: int = 1
    typical: int = 8
    largest: int = 32


class Tick(Protocol):
    """Says that `more` units are done, and in a few words how it goes."""

    def __call__(self, more: int, said: str = "", /) -> object: ...


Progress = Callable[[str, int], Tick]  # how long work says how far it is: (what, how many) -> tick


def silent(_what: str, _total: int) -> Tick:
    """Return a tick that nobody watches."""
    return lambda _more, _said="": None


class Component(ABC):
    """Base of every component: a name (lower case, words joined by `-`, `_`, `.` or `/`), a kind, options."""

    name: str
    kind: ClassVar[str]

    def exempt(self) -> Mapping[str, str]:
        """The checks of `tlkit.conformance` that it fails for a good reason, each with the reason."""
        return {}


class Backbone(Component):
    """A pretrained network as an ordered list of named stages, shallow to deep; chaining them is the network."""

    kind = "backbone"
    preprocessing: Preprocessing
    weights: Weights

    @abstractmethod
    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        """The stages in order, in eval mode, freshly built. The first takes float32 `(N, 3, S, S)`, normalised.

        With `pretrained=False` the weights are random and no weights file is looked for.
        """

    def pool(self) -> nn.Module | None:
        """From any stage's output to features `(N, width)`.

        None stands for the mean over space `(N, C, H, W)` or tokens `(N, T, C)`.
        """
        return None

    def classifier(self) -> nn.Module | None:
        """The pretrained classifier, from the deepest stage's features to the original logits, where there is one."""
        return None

    def whole(self, *, pretrained: bool) -> nn.Module | None:
        """The network as its own library runs it, in eval mode: from the first stage's input to the last one's output.

        For a plugin that takes stages out of a library's network: the conformance check holds the chained stages
        against it. With `pretrained=False` both are built after the same `torch.manual_seed`, and have to come out with
        the same weights.
        """
        return None


class Head(Component):
    """From features to logits, as a module made of standard operators, however its weights came about."""

    kind = "head"

    @abstractmethod
    def module(self, width: int, classes: int) -> nn.Module:
        """An untrained module `(N, width) -> (N, classes)`, trainable by gradient.

        A head that can only be solved raises `tlkit.errors.UsageError`.
        """

    def solve(
        self, features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, seed: int
    ) -> nn.Module | None:
        """Fit features `(N, width)` to labels `(N,)` in 0..classes-1; None means "train `module` by gradient"."""
        return None

    def restore(self, width: int, classes: int, tensors: Mapping[str, Any]) -> nn.Module:
        """The module that a state dict of torch tensors came from."""
        module = self.module(width, classes)
        module.load_state_dict(tensors)
        return module.eval()


class Strategy(Component):
    """A pure function from facts to a list of phases."""

    kind = "strategy"

    @abstractmethod
    def phases(self, stages: Sequence[str], facts: DatasetStatistics) -> Sequence[Phase]:
        """What to train, in order; `stages` names the trunk's stages, shallow to deep."""

    def cut(self, stages: Sequence[str], facts: DatasetStatistics) -> str:
        """The last stage to keep, unless the user names one."""
        return stages[-1]


class Session(ABC):
    """An opened target: one array in, named arrays out."""

    input: str  # IMAGES or FEATURES
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]
    workers: int = 1  # how many threads gain by calling `run` at the same time
    batch_size: int = 8  # how many images a call had best be given where there are many
    gpu_seconds: float | None = None  # of the last call: how long the GPU took, by its own clock, where one can tell

    @abstractmethod
    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        """Float32 arrays by name (all of `outputs` unless told), row for row as in `array` `(N, ...)`."""


class Target(Component):
    """A runtime format: how an ONNX graph becomes a file it runs, and how that file is opened."""

    kind = "target"
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)  # of graphs: also fp16, int8 (uint8 activations), int8-symmetric
    suffix: ClassVar[str]
    executable: ClassVar[bool] = False  # whether opening a file runs code that is in it: a stranger's is not opened

    def machine(self) -> Mapping[str, str]:
        """What a file built here needs to find where it is opened, such as the GPU; nothing unless overridden."""
        return {}

    def missing(self) -> str | None:
        """Why this target can't run here, with the command that would install it; None where it can."""
        return None

    @abstractmethod
    def build(self, graph: Path, out: Path, shapes: OptimizationProfile) -> None:
        """Write the file `out` from the ONNX file `graph`."""

    def build_with_progress(self, graph: Path, out: Path, shapes: OptimizationProfile, progress: Progress) -> None:
        """As `build`, which it calls unless overridden, for what takes long enough to say how far it is."""
        self.build(graph, out, shapes)

    @abstractmethod
    def open(self, file: Path) -> Session:
        """Open a file that `build` wrote."""

    def incompatible(self, built_on: Mapping[str, str]) -> str | None:
        """Why a file can't be opened here that was built by this component, with these options, on such a machine.

        `built_on` is what `machine` said there. Unless overridden, every fact has to be the same here.
        """
        here = self.machine() if built_on else {}
        for fact, value in built_on.items():
            if here.get(fact) != value:
                return f"it was built for {fact} {value}, and here is {here.get(fact)}"
        return None


def option_fields(component: Component) -> tuple[dataclasses.Field[Any], ...]:
    """The dataclass fields that are options: those declared with `option`."""
    if not dataclasses.is_dataclass(component):
        return ()
    return tuple(field for field in dataclasses.fields(component) if "help" in field.metadata)
