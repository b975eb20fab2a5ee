"""Gradients on a CPU, where PyTorch's own way to them is slow; what comes of it is the same but for rounding.

Two layers took most of a step's time with a few deep stages of EfficientNet-Lite0 moving. Both are mended around the
network, and no backbone need know of it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

WIDE = 3  # columns of a kernel that oneDNN has a fast weight gradient for

Pair = tuple[int, int]


class LastInOrder(nn.Module):
    """Hands maps on as they are, and their gradients back with the channels last, as the layers before want them.

    The gradient of a mean over space comes with the channels first; the batch norm before it then took ten times as
    long, 40 % of a step with one stage moving.
    """

    def forward(self, x: Tensor) -> Tensor:
        ordered: Tensor = _InOrder.apply(x) if x.ndim == 4 else x
        return ordered


class _InOrder(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


@contextmanager
def narrow_kernels(device: torch.device) -> Iterator[None]:
    """Inside, weight gradients of wide depthwise kernels are taken a few columns at a time.

    oneDNN has fast code for kernels of up to three columns and falls back to a loop for wider ones: for 5 x 5 the
    gradient took as long as ten forward passes, a third of a step with four stages moving.
    """
    onednn: Any = torch.backends.mkldnn  # not all of it has types
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64") or not onednn.is_available():
        yield
        return
    with _Narrow():
        yield


class _Narrow(TorchFunctionMode):
    """Sees every convolution before PyTorch does."""

    def __torch_function__(
        self, called: Callable[..., Any], _types: Any, args: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if called is torch.conv2d and not torch.compiler.is_compiling():
            asked = _asked(*args, **named)
            if asked is not None:
                return _Depthwise.apply(*asked)
        return called(*args, **named)


def _asked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Pair, Pair] | None:
    """What to give to `_Depthwise`, if the weight gradient of this convolution is one that is slow."""
    wide = input.ndim == 4 and weight.shape[3] > WIDE
    depthwise = groups == len(weight) == input.shape[1] and groups > 1
    plain = _pair(dilation) == (1, 1) and not isinstance(padding, str)
    learns = torch.is_grad_enabled() and weight.requires_grad
    if not (wide and depthwise and plain and learns) or torch.is_autocast_enabled("cpu"):
        return None
    if not input.dtype == weight.dtype == torch.float32:
        return None
    return input, weight, bias, _pair(stride), _pair(padding)  # type: ignore[arg-type]  # no text, see `plain`


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with a weight gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_x = _backward(gradient, x, weight, ctx.stride, ctx.padding, (True, False))[0] if wants_x else None
        of_weight = _weight_gradient(gradient, x, weight, ctx.stride, ctx.padding) if wants_weight else None
        return of_x, of_weight, gradient.sum((0, 2, 3)) if wants_bias else None, None, None


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Each few columns of a kernel see the maps moved aside by as many as there are before them."""
    parts = []
    for first in range(0, weight.shape[3], WIDE):
        columns = weight[..., first : first + WIDE]
        seen = stride[1] * (gradient.shape[3] - 1) + columns.shape[3]
        moved = _moved(x, padding[1] - first, seen)
        parts.append(_backward(gradient, moved, columns, stride, (padding[0], 0), (False, True))[1])
    return torch.cat(parts, 3)


def _moved(x: Tensor, right: int, width: int) -> Tensor:
    """Maps moved to the right, or to the left by less than nought, of another width; what comes in is nought.

    `F.pad` does the same, and writes everything twice.
    """
    moved = torch.empty((*x.shape[:3], width), dtype=x.dtype, memory_format=torch.channels_last)
    begin, end = max(right, 0), min(right + x.shape[3], width)
    moved[..., :begin] = 0
    moved[..., end:] = 0
    moved[..., begin:end] = x[..., begin - right : end - right]
    return moved


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """PyTorch's gradients of a depthwise convolution's input and weight, those that are wanted."""
    given = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), (*wanted, False)
    )
    return given[0], given[1]
