"""Take a timm model apart into stages."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tlkit.plugin.support import ChannelsLastPool, NotAChain, TokenPool, UsageError, take_apart


class PooledFeatures(nn.Module):
    """Model as timm runs it, up to the input of its classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        return features


def stages(model: Any, size: int) -> dict[str, nn.Module]:
    """Return the stages of a model for images of `size` pixels. Raises UsageError if it has none.

    A model without values (on the device `meta`) is taken apart without comparing what is computed.
    """
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        if not hasattr(model, "get_classifier"):
            raise NotAChain("timm's model gives no features of a whole image")
        found = model.get_classifier()
        network = PooledFeatures(_without(model, map(_layer, found if isinstance(found, tuple) else (found,))))
        return take_apart(network, image.to(next(model.parameters()).device), pooling(model))
    except NotAChain as reason:
        name = model.pretrained_cfg["architecture"]
        raise UsageError(
            f"backbone 'timm/{name}' has no stages for images of {size} pixels: {reason}",
            do="choose another: tlkit plugins",
        ) from reason


def pooling(model: Any) -> nn.Module | None:
    """Return the pooling of any stage's output to features: that of the model's own head, if it has no weights."""
    prefix = getattr(model, "num_prefix_tokens", None)
    if prefix is not None:
        return TokenPool(prefix, first=model.global_pool == "token")
    return ChannelsLastPool() if getattr(model, "output_fmt", None) == "NHWC" else None


def classifier(model: Any) -> nn.Module | None:
    """Return the layer from features to logits; None if there is none, or more than one."""
    found = model.get_classifier()
    return found if isinstance(found, nn.Module) and any(True for _ in found.parameters()) else None


def _layer(classifier: nn.Module) -> nn.Module:
    """Return the layer that gives logits: timm runs a head with pooling a classifier too."""
    layers = [module for module in classifier.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[-1] if layers else classifier


def _without(model: nn.Module, removed: Iterable[nn.Module]) -> nn.Module:
    """Return a copy of a model that shares its tensors, with identities in place of the removed modules."""
    # deepcopy takes objects from its memo instead of copying them.
    memo: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    memo |= {id(module): nn.Identity() for module in removed}
    return copy.deepcopy(model, memo)
