"""Batch norms of a network, and what their running statistics tell of the pretraining."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the one base of 1d, 2d, 3d and sync

from tlkit.model.trunk import Trunk

Channels = NDArray[np.float64]


def batch_norms(stages: Iterable[nn.Module]) -> list[_BatchNorm]:
    """Return all batch norms inside."""
    return [norm for stage in stages for norm in stage.modules() if isinstance(norm, _BatchNorm)]


@dataclass(frozen=True, slots=True)
class BatchNormStatistics:
    """Statistics of the pretraining in one batch norm, which in eval mode is `x * scale + shift`; arrays `(channels,)`.

    On the images of the pretraining its output has the mean `bias` and the variance `share * weight**2`. `folded` has
    the biases it may become where it is folded into a preceding convolution: its shift alone, or with its own bias.
    """

    stage: str
    weight: Channels
    bias: Channels
    share: Channels  # variance / (variance + epsilon)
    folded: tuple[Channels, ...]


def pretraining_statistics(trunk: Trunk) -> list[BatchNormStatistics]:
    """Return those of the batch norms of a trunk that keep running statistics, stage by stage."""
    return [
        _statistics(name, stage, norm)
        for name, stage in trunk.stages.items()
        for norm in batch_norms([stage])
        if norm.running_mean is not None and norm.running_var is not None
    ]


def _statistics(name: str, stage: nn.Module, norm: _BatchNorm) -> BatchNormStatistics:
    def channels(tensor: Tensor | None, default: float) -> Channels:
        values = torch.full((norm.num_features,), default) if tensor is None else tensor
        array: Channels = values.detach().double().numpy()
        return array

    mean, variance = channels(norm.running_mean, 0.0), channels(norm.running_var, 1.0)
    weight, bias = channels(norm.weight, 1.0), channels(norm.bias, 0.0)
    scale = weight / (variance + norm.eps) ** 0.5
    shift = bias - mean * scale
    biases = [module.bias for module in stage.modules() if isinstance(module, nn.Conv2d) and module.bias is not None]
    folded = [shift + channels(own, 0.0) * scale for own in biases if len(own) == norm.num_features]
    return BatchNormStatistics(name, weight, bias, variance / (variance + norm.eps), (shift, *folded))
