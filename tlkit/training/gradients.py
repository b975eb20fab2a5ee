"""Faster gradients on a CPU, equal to PyTorch's own except for rounding.

Two layers took most of a step's time when a few deep stages of EfficientNet-Lite0 train. Both are replaced around the
network, and no backbone needs to know.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

FAST_COLUMNS = 3  # widest kernel for which oneDNN has a fast weight gradient

Pair = tuple[int, int]


@contextmanager
def fast_gradients(device: torch.device, pool: nn.Module) -> Iterator[None]:
    """Inside, compute gradients of wide depthwise kernels in parts, and of the pool's input with the channels last.

    The gradient of a mean over space has the channels first; the batch norm before it then took ten times as long, 40 %
    of a step with one trainable stage.

    oneDNN has fast code for kernels of up to three columns and falls back to a loop for wider ones: for 5 x 5 the
    gradient took as long as ten forward passes, a third of a step with four trainable stages.
    """
    onednn: Any = torch.backends.mkldnn  # not all of it has types
    x86 = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64") and onednn.is_available()
    hook = pool.register_forward_pre_hook(_with_channels_last_gradient)
    try:
        with _DepthwiseMode() if x86 else nullcontext():
            yield
    finally:
        hook.remove()


def _with_channels_last_gradient(_pool: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return maps whose gradient arrives with the channels last, the order that the layers before expect."""
    if torch.compiler.is_compiling() or args[0].ndim != 4 or not args[0].requires_grad:
        return args
    maps = args[0].view_as(args[0])
    maps.register_hook(partial(Tensor.contiguous, memory_format=torch.channels_last))  # type: ignore[no-untyped-call]
    return maps, *args[1:]


class _DepthwiseMode(TorchFunctionMode):
    """Replaces each convolution whose weight gradient is slow."""

    def __torch_function__(
        self, called: Callable[..., Any], _types: Any, args: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if called is torch.conv2d and not torch.compiler.is_compiling():
            slow = _slow_arguments(*args, **named)
            if slow is not None:
                return _Depthwise.apply(*slow)
        return called(*args, **named)


def _slow_arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Pair, Pair] | None:
    """Return the arguments of `_Depthwise` if the weight gradient of this convolution is slow."""
    wide = input.ndim == 4 and weight.shape[3] > FAST_COLUMNS
    depthwise = groups == len(weight) == input.shape[1] and groups > 1
    plain = _pair(dilation) == (1, 1) and not isinstance(padding, str)
    trains = torch.is_grad_enabled() and weight.requires_grad
    if not (wide and depthwise and plain and trains) or torch.is_autocast_enabled("cpu"):
        return None
    if not input.dtype == weight.dtype == torch.float32:
        return None
    return input, weight, bias, _pair(stride), _pair(padding)  # type: ignore[arg-type]  # no text, see `plain`


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose weight gradient is computed in parts."""

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
    """Return the weight gradient, a few columns at a time: each part sees the maps shifted by the columns before it."""
    parts = []
    for first in range(0, weight.shape[3], FAST_COLUMNS):
        columns = weight[..., first : first + FAST_COLUMNS]
        width = stride[1] * (gradient.shape[3] - 1) + columns.shape[3]
        shifted = _shifted(x, padding[1] - first, width)
        parts.append(_backward(gradient, shifted, columns, stride, (padding[0], 0), (False, True))[1])
    return torch.cat(parts, 3)


def _shifted(x: Tensor, right: int, width: int) -> Tensor:
    """Return maps shifted to the right, or to the left if negative, at another width and filled with zeros.

    `F.pad` does the same, and writes everything twice.
    """
    shifted = torch.empty((*x.shape[:3], width), dtype=x.dtype, memory_format=torch.channels_last)
    begin = min(max(right, 0), width)
    end = max(begin, min(right + x.shape[3], width))  # narrow maps may be shifted out as a whole
    shifted[..., :begin] = 0
    shifted[..., end:] = 0
    shifted[..., begin:end] = x[..., begin - right : end - right]
    return shifted


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Return PyTorch's gradients of a depthwise convolution's input and weight, those that are wanted."""
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), (*wanted, False)
    )
    return of_x, of_weight
