"""Random weights with which every layer has an effect.

In a newly initialized network some layers have none: the last scale of a residual branch and biases are often zero, and
statistics of batch norm fit no data. An error in such a layer would not be visible.

Random weights differ from trained ones in another way: an activation cuts half of what a batch norm gives, the next
norm scales the rest up again, and with every such pair of layers a small difference grows. Behind fifty of them one
level of one pixel turned the features, and rounding hid what a check looks for. Batch norms whose output is mostly
positive keep differences small (Yang et al., "A Mean Field Theory of Batch Normalization", ICLR 2019, on activations
that are nearly linear).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

SHIFT = 0.1  # of a tensor's own spread
MIN_SPREAD = 0.05  # if it has none
POSITIVE = 1.0  # added to the bias of batch norms, in standard deviations of their output
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def vary(network: AnyModule, run: Callable[[], object]) -> AnyModule:
    """Shift every parameter of `network` slightly, fit its batch norms by calling `run`, and return it.

    The shift depends only on the values of a parameter: networks with the same weights under other names remain equal.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.add_(_shift(parameter))
        _fit_norms(network, run)
    return network.eval()


def _shift(parameter: Tensor) -> Tensor:
    content = parameter.detach().cpu().contiguous()
    digest = hashlib.sha256(str(tuple(content.shape)).encode() + content.view(-1).view(torch.uint8).numpy().tobytes())
    generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()[:7], "big"))
    spread = max(float(content.std(correction=0)), MIN_SPREAD)
    return SHIFT * spread * torch.randn(content.shape, generator=generator).to(parameter)


def _fit_norms(network: nn.Module, run: Callable[[], object]) -> None:
    norms = [module for module in network.modules() if isinstance(module, _NORMS) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
        if norm.bias is not None:
            norm.bias.add_(POSITIVE)
    if norms:
        run()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_var is not None:  # a channel that is dead on these images would magnify others without bound
            norm.running_var.clamp_(min=float(norm.running_var.mean()) * 1e-2 + 1e-6)
