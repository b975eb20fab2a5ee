"""A timm model as stages: a rule for each family says where they are, and a run of the model shows that they are all.

No code of timm is repeated here. What comes before the stages (embedding, positions, class token) is the model's own
`forward_features` with everything deeper taken out, and what its head does before the classifier is its own
`forward_head`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tlkit.errors import UsageError
from tlkit.model.trunk import MeanPool

TOLERANCE = 1e-5  # relative: both run the same modules, and only the order of memory may differ


@dataclass(frozen=True, slots=True)
class Family:
    """Where models of a class keep their stages, as paths of submodules.

    `body` is the container whose children are the stages, or the stages one by one, each a tuple of what follows each
    other; `back` comes after the deepest of them.
    """

    body: str | tuple[tuple[str, ...], ...]
    back: tuple[str, ...] = ()


def _each(*paths: str) -> tuple[tuple[str, ...], ...]:
    return tuple((path,) for path in paths)


_TOKENS = Family("blocks", ("norm",))
_DENSE = (
    ("features.denseblock1",),
    ("features.transition1", "features.denseblock2"),
    ("features.transition2", "features.denseblock3"),
    ("features.transition3", "features.denseblock4"),
)

# By the name of the model's class; which architectures each stands for is in the README.
FAMILIES = {
    "Beit": _TOKENS,
    "ByobNet": Family("stages", ("final_conv",)),
    "ConvNeXt": Family("stages", ("norm_pre",)),
    "CspNet": Family("stages"),
    "DenseNet": Family(_DENSE, ("features.norm5",)),
    "EfficientNet": Family("blocks", ("conv_head", "bn2")),
    "Eva": _TOKENS,
    "MaxxVit": Family("stages", ("norm",)),
    "MobileNetV3": Family("blocks"),
    "NormFreeNet": Family("stages", ("final_conv", "final_act")),
    "RegNet": Family(_each("s1", "s2", "s3", "s4"), ("final_conv",)),
    "ResNet": Family(_each("layer1", "layer2", "layer3", "layer4")),
    "ResNetV2": Family("stages", ("norm",)),
    "SwinTransformer": Family("layers", ("norm",)),
    "SwinTransformerV2": Family("layers", ("norm",)),
    "VisionTransformer": _TOKENS,
    "VisionTransformerDistilled": _TOKENS,
    "VisionTransformerRelPos": _TOKENS,
    # candidates
    "MetaFormer": Family("stages"),
    "MambaOut": Family("stages", ("norm",)),
    "FocalNet": Family("layers", ("norm",)),
    "FastVit": Family("stages", ("final_conv",)),
    "VovNet": Family("stages"),
    "HighPerfGpuNet": Family("stages"),
    "RexNet": Family("features"),
    "RepVit": Family("stages"),
    "GhostNet": Family("blocks"),
    "Hiera": Family("blocks"),
    "MetaNeXt": Family("stages"),
    "EdgeNeXt": Family("stages", ("norm_pre",)),
    "DaVit": Family("stages", ("norm_pre",)),
    "SwinTransformerV2Cr": Family("stages", ("norm",)),
    "PyramidVisionTransformerV2": Family("stages"),
    "MultiScaleVit": Family("stages", ("norm",)),
    "PoolingVisionTransformer": Family("transformers"),
    "RepGhostNet": Family("blocks"),
    "StarNet": Family("stages", ("norm",)),
    "EfficientVitMsra": Family("stages"),
    "FasterNet": Family("stages"),
    "Nest": Family("levels", ("norm",)),
    "TinyVit": Family("stages"),
    "GlobalContextVit": Family("stages"),
    "EfficientFormer": Family("stages", ("norm",)),
    "EfficientFormerV2": Family("stages", ("norm",)),
    "EfficientVit": Family("stages"),
    "EfficientVitLarge": Family("stages"),
    "RDNet": Family("dense_stages"),
    "VGG": Family("features"),
    "MlpMixer": Family("blocks", ("norm",)),
    "ConvMixer": Family("blocks"),
    "InceptionV4": Family("features"),
    "SENet": Family(_each("layer1", "layer2", "layer3", "layer4")),
    "TResNet": Family("body"),
    "DPN": Family("features"),
    "VisionTransformerSAM": Family("blocks", ("neck",)),
    "DLA": Family(_each("level2", "level3", "level4", "level5")),
    "Levit": Family("stages"),
    "LevitDistilled": Family("stages"),
    "NextViT": Family("stages", ("norm",)),
    "SwiftFormer": Family("stages", ("norm",)),
    "Sequencer2d": Family("stages", ("norm",)),
    "SHViT": Family("stages"),
    "XceptionAligned": Family("blocks", ("act",)),
    "SelecSls": Family("features", ("head",)),
    "CspNext": Family("stages"),
    "CPUBone": Family("stages"), "LowFormer": Family("stages"), "IFormer": Family("stages"),
    "MobileNetV5": Family("blocks"),
    "LCNetV2": Family("stages"),
    "CSATv2": Family("stages"),
    "EfficientViM": Family("stages"),
    "ConVit": Family("blocks", ("norm",)),
    "Visformer": Family(_each("stage1","stage2","stage3"), ("norm",)),
    "HieraDet": Family("blocks"),
}


class Part(nn.Module):
    """What is left of a model, run by one of its own methods."""

    def __init__(self, model: nn.Module, method: str, **arguments: Any) -> None:
        super().__init__()
        self.model = model
        self.method = method
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = getattr(self.model, self.method)(x, **self.arguments)
        return y


class Rotated(nn.Module):
    """A block with the rotary position embedding that its model hands to every block."""

    rope: Tensor

    def __init__(self, block: nn.Module, rope: Tensor) -> None:
        super().__init__()
        self.block = block
        self.register_buffer("rope", rope, persistent=False)  # follows from the size of the images

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x, rope=self.rope)
        return y


class TokenPool(nn.Module):
    """Tokens `(N, T, C)` to `(N, C)`: the class token, or the mean of those that stand for patches."""

    def __init__(self, prefix: int, *, first: bool) -> None:
        super().__init__()
        self.prefix = prefix
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            return x
        return x[:, 0] if self.first else x[:, self.prefix :].mean(1)


class ChannelsLastPool(nn.Module):
    """The mean over space `(N, H, W, C)`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2)) if x.ndim == 4 else x


def pooling(model: Any) -> nn.Module | None:
    """How the output of a stage is pooled, as the model's own head does it where that has no weights."""
    prefix = getattr(model, "num_prefix_tokens", None)
    if prefix is not None:
        return TokenPool(prefix, first=model.global_pool == "token")
    return ChannelsLastPool() if getattr(model, "output_fmt", None) == "NHWC" else None


def split(model: Any, size: int) -> dict[str, nn.Module]:
    """The stages of a model for images of `size` pixels; chained, they give what its classifier takes, but for `pooling`.

    They take the place of the model, which is not to be used any more. Raises UsageError where they don't chain.
    """
    family = FAMILIES.get(type(model).__name__)
    if family is None:
        raise UsageError("no rule")
    body, back = _body(model, family), [model.get_submodule(path) for path in family.back]
    top = (family.body if isinstance(family.body, str) else family.body[0][0]).partition(".")[0]
    names = [name for name, _ in model.named_children()]
    before = [model.get_submodule(name) for name in names[: names.index(top)]]
    after = [model.get_submodule(name) for name in names[names.index(top) + 1 :]]
    flat = [module for stage in body for module in stage]

    rope = _rope(model)
    stages: dict[str, nn.Module] = {"stem": Part(_without(model, [*flat, *back, *after]), "forward_features")}
    for number, modules in enumerate(body, start=1):
        parts = modules if rope is None else [Rotated(module, rope) for module in modules]
        stages[f"stage{number}"] = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    deepest = list(stages)[-1]
    head = _without(model, [*before, model.get_submodule(top), *flat, *back, *_classifiers(model)])
    for name, _ in list(head.named_parameters(recurse=False)):
        setattr(head, name, None)
    pool = pooling(model) or MeanPool()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        m = model.forward_features(x)
        f = model.forward_head(m, pre_logits=True)
    tail: list[nn.Module] = [module for module in back if not isinstance(module, nn.Identity)]
    last = Part(head, "forward_head", pre_logits=True)
    with torch.inference_mode():
        simple = not list(last.parameters()) and _close(pool(m), f)
    if not simple:
        tail.append(last)
    if any(p.ndim > 1 for module in tail for p in module.parameters()):
        stages["last"] = nn.Sequential(*tail)
    elif tail:
        stages[deepest] = nn.Sequential(stages[deepest], *tail)
    y = x
    with torch.inference_mode():
        for s in stages.values():
            y = s(y)
        d = (pool(y) - f).abs().max().item() / f.abs().max().item()
        same = y.shape == m.shape and torch.equal(y, m)
    return stages, d, same, simple


def _close(a, b):
    return a.shape == b.shape and bool((a - b).abs().max() <= TOLERANCE * b.abs().max())


def _rope(model):
    rope = getattr(model, "rope", None)
    if rope is None:
        return None
    if list(rope.parameters()):
        raise UsageError("learned rotary")
    return rope.get_embed(shape=model.patch_embed.grid_size)

def _body(model: Any, family: Family) -> list[list[nn.Module]]:
    if isinstance(family.body, str):
        return [[child] for child in model.get_submodule(family.body).children()]
    return [[model.get_submodule(path) for path in paths] for paths in family.body]


def _classifiers(model: Any) -> list[nn.Module]:
    found = model.get_classifier()
    return list(found) if isinstance(found, tuple) else [found]


def _without(model: nn.Module, removed: Collection[nn.Module]) -> nn.Module:
    """A copy of a model that shares its tensors, with nothing where the removed modules stood."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    memo |= {id(module): nn.Sequential() for module in removed}
    return copy.deepcopy(model, memo)
