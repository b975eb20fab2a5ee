"""The options that heads share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlkit.errors import UsageError
from tlkit.plugin.contract import Head, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from tlkit_standard.heads._solve import Method


@dataclass(frozen=True)
class SolvedHead(Head):
    power: float = option(1.0, "p")
    l2: bool = option(False, "l2")
    standardise: bool = option(True, "z")
    pca: int = option(0, "pca")
    whiten: bool = option(False, "whiten")
    calibrate: bool = option(True, "cal")

    def module(self, width, classes):
        raise NotImplementedError
    def solve(self, features, labels, classes, seed):
        from tlkit_standard.heads._solve import solve
        return solve(self, self.method(), features, labels, classes, seed)
