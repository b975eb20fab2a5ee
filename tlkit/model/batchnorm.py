"""What the batch norms of a trunk remember of the images it was pretrained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from tlkit.model.trunk import Trunk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Channels = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Norm:
    """One batch norm in eval mode, `x * scale + shift`; all arrays `(channels,)`.

    On the images of the pretraining what it gives has the mean `bias` and the variance `share * weight**2`. `folded`
    has what it may add where it is folded into what comes before: its shift, or that with a convolution's bias.
    """

    stage: str
    weight: Channels
    bias: Channels
    share: Channels  # of the variance in itself with its epsilon
    folded: tuple[Channels, ...]


def norms(trunk: Trunk) -> list[Norm]:
    """The batch norms of a trunk that keep running statistics, stage by stage."""
    return [
        _norm(name, stage, module)
        for name, stage in trunk.stages.items()
        for module in stage.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 - the one base of 1d, 2d, 3d and sync
        and module.running_mean is not None
        and module.running_var is not None
    ]


def _norm(name: str, stage: nn.Module, norm: nn.modules.batchnorm._BatchNorm) -> Norm:
    def channels(tensor: torch.Tensor | None, otherwise: float) -> Channels:
        given = torch.full((norm.num_features,), otherwise) if tensor is None else tensor
        array: Channels = given.detach().double().numpy()
        return array

    mean, variance = channels(norm.running_mean, 0.0), channels(norm.running_var, 1.0)
    weight, bias = channels(norm.weight, 1.0), channels(norm.bias, 0.0)
    scale = weight / (variance + norm.eps) ** 0.5
    shift = bias - mean * scale
    biases = [module.bias for module in stage.modules() if isinstance(module, nn.Conv2d) and module.bias is not None]
    folded = [shift + channels(own, 0.0) * scale for own in biases if len(own) == norm.num_features]
    return Norm(name, weight, bias, variance / (variance + norm.eps), (shift, *folded))
