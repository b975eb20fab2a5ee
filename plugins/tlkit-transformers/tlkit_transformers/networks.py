"""Networks of transformers: built from their configuration, and taken apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from tlkit.plugin.support import NotAChain, TokenPool, UsageError, take_apart

if TYPE_CHECKING:
    from tlkit_transformers.backbone import Transformers


@dataclass(frozen=True, slots=True)
class Family:
    """Classes of a type of networks, and how its features come about."""

    model: str
    config: str
    own: str  # pooling: class (token after the last norm), or pooler (what the network itself computes)
    prefix: Callable[[Any], int] | None = None  # number of tokens that stand for no patch; None: maps, or their means
    interpolates: bool = False  # positions, if it is told to
    arguments: tuple[tuple[str, Any], ...] = ()


def _registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


MASK = "mask_token"
_NO_POOLER = (("add_pooling_layer", False),)
FAMILIES = {
    "vit": Family("ViTModel", "ViTConfig", "class", lambda _: 1, True, _NO_POOLER),
    "deit": Family("DeiTModel", "DeiTConfig", "class", lambda _: 2, True, _NO_POOLER),
    "dinov2": Family("Dinov2Model", "Dinov2Config", "class", lambda _: 1),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", "class", _registers),
    "dinov3_vit": Family("DINOv3ViTModel", "DINOv3ViTConfig", "class", _registers),
    "dinov3_convnext": Family("DINOv3ConvNextModel", "DINOv3ConvNextConfig", "pooler"),
    "siglip_vision_model": Family("SiglipVisionModel", "SiglipVisionConfig", "pooler", lambda _: 0, True),
    "clip_vision_model": Family("CLIPVisionModel", "CLIPVisionConfig", "pooler", lambda _: 1, True),
    "convnext": Family("ConvNextModel", "ConvNextConfig", "pooler"),
    "convnextv2": Family("ConvNextV2Model", "ConvNextV2Config", "pooler"),
    "swin": Family("SwinModel", "SwinConfig", "pooler"),
    "swinv2": Family("Swinv2Model", "Swinv2Config", "pooler"),
    "resnet": Family("ResNetModel", "ResNetConfig", "pooler"),
}


class Features(nn.Module):
    """Network from images to features `(N, width)`, as transformers runs it."""

    def __init__(self, model: nn.Module, pooling: str, prefix: int, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.pooling, self.prefix, self.arguments = model, pooling, prefix, arguments

    def forward(self, x: Tensor) -> Tensor:
        output: Any = self.model(x, **self.arguments)
        tokens: Tensor = output.last_hidden_state
        if self.pooling == "class":
            return tokens[:, 0]
        if self.pooling == "mean":
            return tokens[:, self.prefix :].mean(1)
        pooled: Tensor = output.pooler_output
        return pooled.flatten(1)


def family(backbone: Transformers) -> Family:
    """Return the family of a backbone."""
    return FAMILIES[backbone.published.model_type]


def configuration(backbone: Transformers) -> Any:
    """Return the configuration of a backbone. Raises UsageError."""
    changes = backbone.changes()
    if changes.get("num_channels", 3) != 3:
        raise UsageError(f"backbone {backbone.name!r}: it takes {changes['num_channels']} channels, tlkit's have 3")
    try:
        return getattr(transformers, family(backbone).config)(**changes)
    except Exception as error:  # huggingface_hub validates with errors of its own
        line = str(error).strip().replace("\n", " ")
        raise UsageError(f"backbone {backbone.name!r}: its configuration is refused: {line}") from error


def built(backbone: Transformers) -> nn.Module:
    """Return the network of a backbone with random weights, in eval mode."""
    kind = family(backbone)
    try:
        model: nn.Module = getattr(transformers, kind.model)(configuration(backbone), **dict(kind.arguments))
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"backbone {backbone.name!r}: its configuration is refused: {error}") from error
    return without_mask_token(model).eval()


def without_mask_token(model: nn.Module) -> nn.Module:
    """Take out of a network, in place, the token that stands for masked patches: pretraining alone uses it."""
    for module in model.modules():
        if isinstance(getattr(module, MASK, None), nn.Parameter):
            module.register_parameter(MASK, None)
    return model


def features(backbone: Transformers, *, pretrained: bool) -> Features:
    """Return the network from images to features, in eval mode. Raises UsageError."""
    from tlkit_transformers import loading

    kind, config = family(backbone), configuration(backbone)
    prefix = kind.prefix(config) if kind.prefix else 0
    if backbone.pooling != "own" and kind.prefix is None:
        raise UsageError(f"backbone {backbone.name!r} has no tokens to pool", do="leave out backbone.pooling")
    if backbone.pooling == "class" and prefix == 0:
        raise UsageError(f"backbone {backbone.name!r} has no class token", do="choose another backbone.pooling")
    own = backbone.pooling == "own"
    other = kind.interpolates and backbone.preprocessing.size != config.image_size
    arguments = {"interpolate_pos_encoding": True} if other else {}
    model = loading.pretrained(backbone) if pretrained else built(backbone)
    if not own and kind.own == "pooler":
        _drop_pooler(model)
    return Features(model, kind.own if own else backbone.pooling, prefix, arguments).eval()


def stages(backbone: Transformers, *, pretrained: bool) -> dict[str, nn.Module]:
    """Return the stages of a backbone. Raises UsageError if it takes no images of that size."""
    size = backbone.preprocessing.size
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        return take_apart(features(backbone, pretrained=pretrained), image, pool(backbone))
    except NotAChain as reason:
        what = f"backbone {backbone.name!r} has no stages for images of {size} pixels: {reason}"
        raise UsageError(what, do="leave out the size, or choose another backbone") from reason


def pool(backbone: Transformers) -> nn.Module | None:
    """Return the pooling of any stage's output to features; None: the mean."""
    kind = family(backbone)
    if kind.prefix is None:
        return None
    prefix = kind.prefix(configuration(backbone))
    return TokenPool(prefix, first=prefix > 0 and backbone.pooling != "mean")


def _drop_pooler(model: Any) -> None:
    """Take out what only the network's own pooling uses."""
    holders = [each for each in model.modules() if getattr(each, "use_head", False)]
    for holder in holders:
        holder.use_head = False
        del holder.head
