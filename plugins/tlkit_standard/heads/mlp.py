"""Multilayer perceptron with one hidden layer, trained by gradient."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit.plugin.contract import option
from tlkit_standard.heads._base import FrontHead

if TYPE_CHECKING:
    from torch import nn

    from tlkit_standard.heads._modules import Front, Tensors

MOST_HIDDEN = 2**16  # units; a head larger than most trunks helps nobody


@dataclass(frozen=True)
class Mlp(FrontHead):
    """Linear, ReLU, dropout, linear."""

    name = "mlp"
    standardize: bool = option(True, "batch normalization before the hidden layer")
    hidden: int = option(512, "units of the hidden layer")
    dropout: float = option(0.2, "dropout probability of the hidden units")

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not 1 <= self.hidden <= MOST_HIDDEN:
            yield f"hidden must be from 1 to {MOST_HIDDEN}, not {self.hidden}"
        if not 0.0 <= self.dropout < 1.0:
            yield f"dropout must lie in [0, 1), not {self.dropout}"

    def module(self, width: int, classes: int) -> nn.Module:
        from tlkit_standard.heads._modules import untrained_front

        return self._perceptron(width, self.hidden, classes, untrained_front(width, self.power, self.l2))

    def build(self, front: Front, tensors: Tensors) -> nn.Module:
        hidden, width = tensors["hidden.weight"].shape
        return self._perceptron(width, hidden, len(tensors["linear.bias"]), front)

    def _perceptron(self, width: int, hidden: int, classes: int, front: Front) -> nn.Module:
        from torch import nn

        from tlkit_standard.heads._modules import Standardize

        layers: dict[str, nn.Module] = {"front": front} if front.acts else {}
        if self.standardize:
            layers["standardize"] = Standardize(width)
        layers["hidden"] = nn.Linear(width, hidden)
        layers["relu"] = nn.ReLU()
        layers["dropout"] = nn.Dropout(self.dropout)
        layers["linear"] = nn.Linear(hidden, classes)
        return nn.Sequential(OrderedDict(layers))
