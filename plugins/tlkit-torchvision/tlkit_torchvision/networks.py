"""Networks of torchvision: built, given weights, and taken apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from tlkit.plugin.support import (
    ChannelsLastPool,
    NotAChain,
    ResourceError,
    TokenPool,
    UsageError,
    load_weights,
    read_weights,
    take_apart,
)
from tlkit_torchvision.metadata import entry

if TYPE_CHECKING:
    from tlkit_torchvision.backbone import Torchvision


def stages(backbone: Torchvision, *, pretrained: bool) -> dict[str, nn.Module]:
    """Return the stages of a backbone. Raises UsageError if its network takes no images of that size."""
    size = backbone.preprocessing.size
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        return take_apart(network(backbone, pretrained=pretrained), image, pool(backbone.architecture))
    except NotAChain as reason:
        what = f"backbone {backbone.name!r} has no stages for images of {size} pixels: {reason}"
        raise UsageError(what, do="leave out the size, or choose another backbone") from reason


def pool(architecture: str) -> nn.Module | None:
    """Return the pooling of any stage's output to features."""
    if architecture.startswith("vit_"):
        return TokenPool(1, first=True)
    return ChannelsLastPool() if architecture.startswith("swin_") else None


def network(backbone: Torchvision, *, pretrained: bool) -> nn.Module:
    """Return torchvision's network from images to features, in eval mode: the classifier is an identity."""
    built, layer = model(backbone, pretrained=pretrained)
    built.set_submodule(layer, nn.Identity())
    return built


def classifier(backbone: Torchvision) -> nn.Module | None:
    """Return the pretrained layer from features to logits; None if a weights file has none."""
    built, layer = model(backbone, pretrained=True)
    found = built.get_submodule(layer)
    return found if isinstance(found, nn.Linear) else None


def model(backbone: Torchvision, *, pretrained: bool) -> tuple[nn.Module, str]:
    """Return torchvision's model in eval mode, with random or pretrained weights, and the path of its classifier."""
    given = _state(backbone) if pretrained else None
    built = _build(backbone)
    layer: str = [path for path, module in built.named_modules() if isinstance(module, nn.Linear)][-1]
    if given is None:
        return built.eval(), layer
    weight = given.get(f"{layer}.weight")
    its: Any = built.get_submodule(layer)
    if weight is None:
        built.set_submodule(layer, nn.Identity())
    elif len(weight) != its.out_features:
        built.set_submodule(layer, nn.Linear(its.in_features, len(weight)))
    if "encoder.pos_embedding" in given and isinstance(built, VisionTransformer):
        given = interpolate_embeddings(built.image_size, built.patch_size, given)
    load_weights(built, given, file=backbone.checkpoint or Path(entry(backbone).url), what=backbone.name)
    return built.eval(), layer


def _state(backbone: Torchvision) -> dict[str, Tensor]:
    """Return the tensors of the weights file, or of torchvision's: from its cache, or downloaded there."""
    if backbone.checkpoint is not None:
        return read_weights(backbone.checkpoint)
    try:
        state: dict[str, Tensor] = entry(backbone).get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # urllib's, and that of a hash that differs
        raise ResourceError(
            f"the pretrained weights of {backbone.name} can't be downloaded: {error}",
            do="connect to the internet, or give them as a file: --set backbone.checkpoint=FILE.safetensors",
        ) from error
    return state


def _build(backbone: Torchvision) -> nn.Module:
    """Return torchvision's model with random weights."""
    size = backbone.preprocessing.size
    arguments: dict[str, Any] = {}
    if backbone.architecture.startswith("vit_"):
        arguments["image_size"] = size
    elif backbone.architecture.startswith("maxvit"):
        arguments["input_size"] = (size, size)
    try:
        model: nn.Module = models.get_model(backbone.architecture, **arguments)
    except (ValueError, RuntimeError, AssertionError) as error:  # how torchvision refuses a size
        what = f"backbone {backbone.name!r} takes no images of {size} pixels: {error}"
        raise UsageError(what, do="leave out the size, or give another") from error
    return model
