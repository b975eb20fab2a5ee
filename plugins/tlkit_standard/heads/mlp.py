"""One hidden layer, trained by gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit.plugin.contract import option
from tlkit_standard.heads._base import FrontHead

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Mlp(FrontHead):
    name = "mlp"
    hidden: int = option(512, "units of the hidden layer")
    dropout: float = option(0.2, "share of hidden units dropped while training")

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.hidden < 1:
            yield f"hidden must be 1 or more, not {self.hidden}"
        if not 0.0 <= self.dropout < 1.0:
            yield f"dropout must lie in [0, 1), not {self.dropout}"

    def module(self, width: int, classes: int) -> nn.Module:
        from tlkit_standard.heads._modules import mlp

        return mlp(self.front(), width, self.hidden, classes, standardise=self.standardise, dropout=self.dropout)
