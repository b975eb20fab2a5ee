"""Updates of low rank for the weights of linear and convolutional layers (LoRA: Hu et al., ICLR 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """A weight `(outputs, …)` plus `lora_b @ lora_a`, scaled; the update is zero before training."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = weight.flatten(1).shape
        self.lora_a = nn.Parameter(weight.new_empty(rank, inputs))
        self.lora_b = nn.Parameter(weight.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.lora_b @ self.lora_a).view(weight.shape)


def add_updates(stages: Sequence[nn.Module], rank: int, alpha: float) -> Callable[[], None]:
    """Give every weight that is larger than its update one, in place, and return the function that merges them."""
    layers = [
        module
        for stage in stages
        for module in stage.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and rank * sum(module.weight.flatten(1).shape) < module.weight.numel()
    ]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))

    def merge() -> None:
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

    return merge
