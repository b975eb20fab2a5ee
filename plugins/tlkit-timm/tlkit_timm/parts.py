"""Modules of stages that are not timm's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Part(nn.Module):
    """Rest of a model, run by one of its own methods."""

    def __init__(self, model: nn.Module, method: str, **arguments: object) -> None:
        super().__init__()
        self.model = model
        self.method = method
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = getattr(self.model, self.method)(x, **self.arguments)
        return y


class Nothing(nn.Sequential):
    """Placeholder of a module that was taken out, whether that is called or iterated."""

    def forward(self, input: Tensor, *_: object, **__: object) -> Tensor:
        return input


class Given(nn.Module):
    """Block with the tensors that its model passes beside its input, such as rotary positions."""

    def __init__(self, block: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.block = block
        self.given = tuple(tensors)
        for name, tensor in tensors.items():  # no part of the state: they follow from structure and image size
            self.register_buffer(name, tensor.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x, **{name: getattr(self, name) for name in self.given})
        return y


class Whole(nn.Module):
    """A model as timm runs it, to the deepest map, or where the stages go on to it, to what its classifier takes."""

    def __init__(self, model: nn.Module, *, headed: bool) -> None:
        super().__init__()
        self.model = model
        self.headed = headed

    def forward(self, x: Tensor) -> Tensor:
        model: Any = self.model
        deepest: Tensor = model.forward_features(x)
        features: Tensor = model.forward_head(deepest, pre_logits=True) if self.headed else deepest
        return features


class TokenPool(nn.Module):
    """Tokens `(N, T, C)` to `(N, C)`: the class token, or the mean of those that stand for patches."""

    def __init__(self, prefix: int, *, first: bool) -> None:
        super().__init__()
        self.prefix = prefix  # how many tokens stand for no patch
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            return x
        return x[:, 0] if self.first else x[:, self.prefix :].mean(1)


class ChannelsLastPool(nn.Module):
    """The mean over space `(N, H, W, C)`; `(N, C)` stays as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2)) if x.ndim == 4 else x
