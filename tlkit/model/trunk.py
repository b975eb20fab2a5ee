"""The trunk in PyTorch: normalization, stages up to the cut, pooling.

The stages of a backbone, chained in order, are the network; everything here follows from that.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlkit.errors import ArtifactError, UsageError
from tlkit.model.cut import JOINT, LEAST_NORM, blocks_of, check_cut
from tlkit.plugin.contract import Backbone, Preprocessing
from tlkit.plugin.sources import identity
from tlkit.util.text import listed

MAX_SIZE = 4096  # pixels a side
STAGE_NAME = re.compile(r"[a-z0-9_]+")  # part of the names of tensors and outputs


class MeanPool(nn.Module):
    """Mean over space `(N, C, H, W)` or tokens `(N, T, C)`; `(N, C)` is unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        # One ReduceMean in ONNX, where adaptive pooling would leave a chain of reshapes behind it.
        return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


class TokenPool(nn.Module):
    """Tokens `(N, T, C)` to `(N, C)`: the first of them, or the mean of all but the `prefix` first."""

    def __init__(self, prefix: int, *, first: bool) -> None:
        super().__init__()
        self.prefix = prefix  # number of tokens that stand for no patch
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            return x
        return x[:, 0] if self.first else x[:, self.prefix :].mean(1)


class ChannelsLastPool(nn.Module):
    """Mean over space `(N, H, W, C)`; `(N, C)` is unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2)) if x.ndim == 4 else x


class Normalize(nn.Module):
    """Images, uint8 `(N, S, S, 3)`, to a network's input, float32 `(N, 3, S, S)`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        # Computed in double precision, and not part of the state: the preprocessing in the bundle is the only source.
        mean = torch.tensor([255 * m for m in preprocessing.mean], dtype=torch.float64)
        scale = torch.tensor([1 / (255 * s) for s in preprocessing.std], dtype=torch.float64)
        self.register_buffer("mean", mean.float().view(3, 1, 1), persistent=False)
        self.register_buffer("scale", scale.float().view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        # Cast before transposing: TensorRT-RTX refuses a transposed uint8 input. Normalize after it, when a channel is
        # one long row; with channels last, ONNX Runtime needs a seventh of EfficientNet-Lite0's time for it.
        return (images.float().permute(0, 3, 1, 2) - self.mean) * self.scale


class Trunk(nn.Module):
    """Images, uint8 `(N, S, S, 3)`, to features, float32 `(N, width)`.

    `backbone` identifies the component that it was built from, see `fingerprint`. `blocks` are the stages whose
    features are joined, shallow to deep; without them it is the last stage alone. `graph` is the file of the graph that
    the backbone comes with, if there is one.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        stages: Mapping[str, nn.Module],
        pool: nn.Module,
        backbone: str = "",
        blocks: Sequence[str] = (),
        graph: Path | None = None,
    ) -> None:
        super().__init__()
        self.preprocessing, self.backbone, self.graph = preprocessing, backbone, graph
        self.blocks = tuple(blocks) or (*stages,)[-1:]
        self.normalize = Normalize(preprocessing)
        self.stages = nn.ModuleDict(stages)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        maps = zip(self.names, self.maps(images), strict=True)
        return joined([self.pool(x) for name, x in maps if name in self.blocks])

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of every stage, shallow to deep, not pooled."""
        outputs, x = [], self.normalize(images)
        for stage in self.stages.values():
            x = stage(x)
            outputs.append(x)
        return outputs

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stages, shallow to deep."""
        return tuple(self.stages)

    @property
    def cut(self) -> str:
        """The cut: the last stage, or the names of several, see `tlkit.model.cut`."""
        return JOINT.join(self.blocks)

    @property
    def width(self) -> int:
        """Number of features per image, from running a black one."""
        size = self.preprocessing.size
        with torch.inference_mode():
            return int(self(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape[1])

    def upto(self, cut: str) -> Trunk:
        """Return the trunk that ends at `cut`; it shares its stages with this one."""
        blocks = blocks_of(check_cut(cut, self.names))
        stages = {name: self.stages[name] for name in self.names[: self.names.index(blocks[-1]) + 1]}
        return Trunk(self.preprocessing, stages, self.pool, self.backbone, blocks).eval()


def joined(blocks: Sequence[Tensor]) -> Tensor:
    """Return the features of several stages side by side, each scaled to norm 1; those of one stage as they are."""
    if len(blocks) == 1:
        return blocks[0]
    return torch.cat([x / x.norm(dim=1, keepdim=True).clamp_min(LEAST_NORM) for x in blocks], 1)


class HalfPrecision(nn.Module):
    """A trunk whose stages compute in float16; normalization, pooling and features stay in float32."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.normalize = trunk.normalize
        self.stages = copy.deepcopy(trunk.stages).half()
        self.pool = trunk.pool  # a mean over many values would lose the precision of float16
        self.blocks = trunk.blocks

    def forward(self, images: Tensor) -> Tensor:
        x, features = self.normalize(images).half(), list[Tensor]()
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self.blocks:
                features.append(self.pool(x.float()))
        return joined(features)


class StageFeatures(nn.Module):
    """Images to the pooled features of every stage, a tuple of `(N, width of that stage)`."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.trunk.pool(x) for x in self.trunk.maps(images))


class StageOutputs(StageFeatures):
    """Images to the pooled features of every stage, then to their maps `(N, H, W, C)`, as they are without space."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.trunk.maps(images)
        # A clone: what has nothing to pool would otherwise be one tensor for two outputs.
        last = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x.clone() for x in maps)
        return (*map(self.trunk.pool, maps), *last)


def build(backbone: Backbone, *, pretrained: bool = True, preprocessing: Preprocessing | None = None) -> Trunk:
    """Return all stages of a backbone as a trunk in eval mode.

    `preprocessing` replaces the backbone's own: a bundle keeps the one that it was trained with.
    """
    stages = backbone.stages(pretrained=pretrained)
    bad = bad_names(stages)
    if not stages or bad:
        wrong = f"stages can't be named {', '.join(map(repr, bad))}" if bad else "it has no stages"
        raise UsageError(f"backbone {backbone.name!r}: {wrong}", do="the author of the plugin has to fix this")
    made_from = json.dumps(identity(backbone), sort_keys=True)
    pool, graph = backbone.pool() or MeanPool(), backbone.graph
    return Trunk(preprocessing or backbone.preprocessing, stages, pool, made_from, graph=graph).eval()


def resized(backbone: Backbone, size: int) -> Preprocessing:
    """Return the preprocessing of a backbone at another input size, in the same proportions.

    Raises UsageError, with the stage and the reason, if its weights do not fit images of that size.
    """
    if size > MAX_SIZE:  # one image would take gigabytes in the first layers
        raise UsageError(f"images of {size:,} pixels a side are too large", do=f"give a --size of at most {MAX_SIZE:,}")
    preprocessing = replace(backbone.preprocessing, size=size)
    trunk = build(backbone, preprocessing=preprocessing)
    with torch.inference_mode():
        x = trunk.normalize(torch.zeros(2, size, size, 3, dtype=torch.uint8))
        for name, stage in trunk.stages.items():
            try:
                x = stage(x)
                fits, reason = bool(x.numel()), "its output is empty"
            except Exception as error:  # noqa: BLE001 - whatever a plugin's layer raises at shapes it can't take
                fits, reason = False, str(error) or type(error).__name__
            if not fits:
                raise UsageError(
                    f"{backbone.name} can't take images of {size} pixels: stage {name!r} fails: {reason}",
                    do=f"leave out --size, for {backbone.preprocessing.size} pixels, or take another backbone",
                )
    return preprocessing


def bad_names(stages: Iterable[str]) -> list[str]:
    """Return the names that no stage can have: not of the form `[a-z0-9_]+`, or used by `nn.ModuleDict` itself."""
    reserved = nn.ModuleDict()
    return [name for name in stages if not _is_stage_name(name) or hasattr(reserved, name)]


def _is_stage_name(name: object) -> bool:
    return isinstance(name, str) and STAGE_NAME.fullmatch(name) is not None


def tensors(module: nn.Module) -> dict[str, NDArray[np.generic]]:
    """Return the state of a module as arrays that share no memory with it."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}


def load_tensors(module: nn.Module, arrays: Mapping[str, NDArray[np.generic]], *, what: str) -> None:
    """Set the state of a module. Raises ArtifactError naming tensors that are missing, unknown or of another shape."""
    problems = misfits({name: tuple(array.shape) for name, array in arrays.items()}, module)
    if problems:
        raise ArtifactError(f"the {what}'s weights do not fit: {listed(problems, separator='; ')}")
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


def misfits(shapes: Mapping[str, tuple[int, ...]], module: nn.Module) -> list[str]:
    """Return which tensors are missing, unknown or of another shape than those of a module."""
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return [
        *(f"{name} is missing" for name in own if name not in shapes),
        *(f"{name} is unknown" for name in shapes if name not in own),
        *(
            f"{name} has shape {shapes[name]}, not {own[name]}"
            for name in own
            if shapes.get(name, own[name]) != own[name]
        ),
    ]


def fingerprint(trunk: Trunk) -> str:
    """Return a hash (hex) of everything that decides what a trunk computes: its architecture and its weights."""
    return hashlib.sha256(f"{architecture_hash(trunk)} {hash_tensors(trunk.state_dict())}".encode()).hexdigest()


def shape_of(value: object) -> str:
    """Return the dtype and shape of a tensor in words, and of anything else its type."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def structure_hash(trunk: Trunk) -> str:
    """Return a hash (hex) of what decides on a trunk's graph whatever the versions of the libraries.

    That is its preprocessing, its modules with the code of their classes, and names, types and shapes of its weights.
    """
    classes = {type(module) for module in trunk.modules() if not type(module).__module__.startswith("torch.")}
    code = sorted(f"{each.__qualname__} {inspect.getsource(each)}" for each in classes)
    weights = [(name, tensor.dtype, tensor.shape) for name, tensor in trunk.state_dict().items()]
    return hashlib.sha256(" ".join(map(str, [trunk.preprocessing, trunk, weights, code])).encode()).hexdigest()


def architecture_hash(trunk: Trunk) -> str:
    """Return a hash (hex) of what decides on a trunk's graph besides the values of its weights.

    That is its code, preprocessing, torch, and names, types and shapes of its weights, and which of them are one
    tensor. Code is the sources of the backbone's distribution and its options, the source of every module class, and
    the version of the library that it belongs to.
    """
    owners: dict[tuple[int, torch.Size], str] = {}
    tensors = {
        name: (tensor.dtype, tensor.shape, owners.setdefault((tensor.data_ptr(), tensor.shape), name))
        for name, tensor in trunk.state_dict().items()
    }
    decides = [torch.__version__, trunk.preprocessing, trunk, trunk.backbone, _libraries(trunk), tensors]
    digest = hashlib.sha256(" ".join(map(str, decides)).encode())
    for file in sorted({_source_file(module) for module in trunk.modules()}):
        digest.update(Path(file).read_bytes() if file else b"")
    return digest.hexdigest()


def state_hash(module: nn.Module) -> str:
    """Return a hash (hex) of every parameter and buffer of a module."""
    return hash_tensors(dict(module.named_parameters()) | dict(module.named_buffers()))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of the names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _libraries(trunk: Trunk) -> list[tuple[str, str]]:
    """Return the packages of the module classes, with their versions where they say."""
    names = {type(module).__module__.partition(".")[0] for module in trunk.modules()}
    return [(name, str(getattr(sys.modules.get(name), "__version__", ""))) for name in sorted(names)]


def _source_file(module: nn.Module) -> str:
    kind = type(module)
    if kind.__module__.startswith("torch."):
        return ""  # covered by torch's version
    try:
        return inspect.getsourcefile(kind) or ""
    except (OSError, TypeError):
        return ""
