"""The trunk in PyTorch: normalise, stages up to the cut, pool.

The stages of a backbone chained in order are the network (design, idea 1); everything here follows from that.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tlkit.errors import ArtifactError, UsageError
from tlkit.plugin.contract import Backbone, Preprocessing
from tlkit.util.text import listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STAGE_NAME = re.compile(r"[a-z0-9_]+")  # it becomes part of tensor and output names


class MeanPool(nn.Module):
    """The mean over space `(N, C, H, W)` or tokens `(N, T, C)`; `(N, C)` stays as it is."""

    def forward(self, x: Tensor) -> Tensor:
        # One ReduceMean in ONNX, where adaptive pooling would leave a chain of reshapes behind it.
        return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


class Normalize(nn.Module):
    """From pixels, uint8 `(N, S, S, 3)`, to a network's input, float32 `(N, 3, S, S)`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        # Folded in double precision, and no part of the state: the recipe in the bundle is the one source.
        mean = torch.tensor([255 * m for m in preprocessing.mean], dtype=torch.float64)
        scale = torch.tensor([1 / (255 * s) for s in preprocessing.std], dtype=torch.float64)
        self.register_buffer("mean", mean.float().view(3, 1, 1), persistent=False)
        self.register_buffer("scale", scale.float().view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        # Cast before transposing: TensorRT-RTX refuses a transposed uint8 input. Normalised after it, a channel is one
        # long row; with channels last, ONNX Runtime goes by threes, which takes a seventh of EfficientNet-Lite0's time.
        return (images.float().permute(0, 3, 1, 2) - self.mean) * self.scale


class Trunk(nn.Module):
    """Pixels, uint8 `(N, S, S, 3)`, to features, float32 `(N, width)`."""

    def __init__(self, preprocessing: Preprocessing, stages: Mapping[str, nn.Module], pool: nn.Module) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.normalize = Normalize(preprocessing)
        self.stages = nn.ModuleDict(stages)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.pool(self.maps(images)[-1])
        return features

    def maps(self, images: Tensor) -> list[Tensor]:
        """The output of every stage, shallow to deep, not pooled."""
        outputs, x = [], self.normalize(images)
        for stage in self.stages.values():
            x = stage(x)
            outputs.append(x)
        return outputs

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the stages, shallow to deep; the last is the cut."""
        return tuple(self.stages)

    @property
    def width(self) -> int:
        """How many features an image has, from running a black one."""
        with torch.inference_mode():
            return int(
                self(torch.zeros(1, self.preprocessing.size, self.preprocessing.size, 3, dtype=torch.uint8)).shape[1]
            )

    def upto(self, cut: str) -> Trunk:
        """The trunk that ends at `cut`; it shares its stages with this one."""
        names = self.names[: self.names.index(check_cut(cut, self.names)) + 1]
        return Trunk(self.preprocessing, {name: self.stages[name] for name in names}, self.pool).eval()


class HalfPrecision(nn.Module):
    """A trunk whose stages compute in float16; pixels, normalisation, pooling and features stay as they are."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.normalize = trunk.normalize
        self.stages = copy.deepcopy(trunk.stages).half()
        self.pool = trunk.pool  # a mean over many values would lose the digits that float16 has

    def forward(self, images: Tensor) -> Tensor:
        x = self.normalize(images).half()
        for stage in self.stages.values():
            x = stage(x)
        features: Tensor = self.pool(x.float())
        return features


class StageFeatures(nn.Module):
    """A trunk seen at every stage: pixels to a tuple of features `(N, width of that stage)`."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.trunk.pool(x) for x in self.trunk.maps(images))


class FeatureMap(nn.Module):
    """A trunk without its pool: pixels to the last stage's output, `(N, H, W, C)`, or as it is without space."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        last = self.trunk.maps(images)[-1]
        return last.permute(0, 2, 3, 1) if last.ndim == 4 else last


def build(backbone: Backbone, *, pretrained: bool = True, preprocessing: Preprocessing | None = None) -> Trunk:
    """The whole network of a backbone as a trunk in eval mode, cut at its deepest stage.

    `pixels` takes the place of the backbone's own recipe: a bundle keeps the one it was trained with.
    """
    stages = backbone.stages(pretrained=pretrained)
    bad = bad_names(stages)
    if not stages or bad:
        wrong = f"stages can't be named {', '.join(map(repr, bad))}" if bad else "it has no stages"
        raise UsageError(f"backbone {backbone.name!r}: {wrong}", do="this is for the author of the plugin to mend")
    return Trunk(preprocessing or backbone.preprocessing, stages, backbone.pool() or MeanPool()).eval()


def resized(backbone: Backbone, size: int) -> Preprocessing:
    """The pixel recipe of a backbone at another input size, in the same proportions.

    Raises a UsageError, with the stage and the reason, where its weights fit no images of that size.
    """
    preprocessing = replace(backbone.preprocessing, size=size)
    trunk = build(backbone, preprocessing=preprocessing)
    with torch.inference_mode():
        x = trunk.normalize(torch.zeros(2, size, size, 3, dtype=torch.uint8))
        for name, stage in trunk.stages.items():
            try:
                x = stage(x)
                fits, reason = bool(x.numel()), "nothing is left of an image"
            except Exception as error:  # noqa: BLE001 - whatever a plugin's layer raises at shapes it can't take
                fits, reason = False, str(error) or type(error).__name__
            if not fits:
                raise UsageError(
                    f"{backbone.name} can't take images of {size} pixels: stage {name!r} fails: {reason}",
                    do=f"leave out --size, for {backbone.preprocessing.size} pixels, or take another backbone",
                )
    return preprocessing


def bad_names(stages: Iterable[str]) -> list[str]:
    """Those of the names that no stage can have: not of the form `[a-z0-9_]+`, or taken by `nn.ModuleDict` itself."""
    taken = nn.ModuleDict()
    return [name for name in stages if not STAGE_NAME.fullmatch(name) or hasattr(taken, name)]


def check_cut(cut: str, names: Sequence[str]) -> str:
    """The cut, if it is the name of a stage."""
    if cut not in names:
        raise UsageError(f"there is no stage {cut!r} to cut at", do=f"choose one of {', '.join(names)}")
    return cut


def tensors(module: nn.Module) -> dict[str, NDArray[np.generic]]:
    """The state of a module as arrays that share no memory with it."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}


def load_tensors(module: nn.Module, arrays: Mapping[str, NDArray[np.generic]], *, what: str) -> None:
    """Set the whole state of a module; the tensors that are missing, left over or of another shape are named."""
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in arrays]
    problems += [f"{name} is unknown" for name in arrays if name not in own]
    problems += [
        f"{name} has shape {tuple(arrays[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in arrays and tuple(arrays[name].shape) != tuple(own[name].shape)
    ]
    if problems:
        raise ArtifactError(f"the {what}'s weights do not fit: {listed(problems, separator='; ')}")
    module.load_state_dict({name: torch.from_numpy(arrays[name].copy()) for name in own})


def fingerprint(trunk: Trunk) -> str:
    """A hash (hex) of all that decides what a trunk computes: weights, structure, code, recipe and torch itself.

    The source of every module class is hashed, so that a plugin author who edits a layer gets a new graph.
    """
    digest = hashlib.sha256(f"{torch.__version__} {trunk.preprocessing} {trunk!r}".encode())
    for file in sorted({_source_file(module) for module in trunk.modules()}):
        digest.update(Path(file).read_bytes() if file else b"")
    digest.update(hash_tensors(trunk.state_dict()).encode())
    return digest.hexdigest()


def state_hash(module: nn.Module) -> str:
    """A hash (hex) of every parameter and every buffer of a module, to the bit."""
    return hash_tensors(dict(module.named_parameters()) | dict(module.named_buffers()))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of the names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _source_file(module: nn.Module) -> str:
    kind = type(module)
    if kind.__module__.startswith("torch."):
        return ""  # stands for torch's version, hashed above
    try:
        return inspect.getsourcefile(kind) or ""
    except (OSError, TypeError):
        return ""
