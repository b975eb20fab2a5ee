"""Random weights that hide nothing.

As networks are initialised, some of their layers do nothing: the last scale of a residual branch is often zero, biases
are, and statistics of batch norm fit no data. An error in what such a layer does could not be seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

SHIFT = 0.1  # of a tensor's own spread
LEAST_SPREAD = 0.05  # where it has none
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def vary(network: AnyModule, run: Callable[[], object]) -> AnyModule:
    """Shift every parameter of `network` a little, and fit its batch norms to what it is `run` on; returns it.

    The shift depends on nothing but the values of a parameter: networks of the same weights under other names remain
    the same.
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
    spread = max(float(content.std(correction=0)), LEAST_SPREAD)
    return SHIFT * spread * torch.randn(content.shape, generator=generator).to(parameter)


def _fit_norms(network: nn.Module, run: Callable[[], object]) -> None:
    norms = [module for module in network.modules() if isinstance(module, _NORMS) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    if norms:
        run()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_var is not None:  # a channel that is dead on these images would magnify others without bound
            norm.running_var.clamp_(min=float(norm.running_var.mean()) * 1e-2 + 1e-6)
