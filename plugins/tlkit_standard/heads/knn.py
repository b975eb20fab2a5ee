"""The nearest training images vote: no assumption about the classes, and every training image is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit.plugin.contract import option
from tlkit_standard.heads._base import MemoryHead

if TYPE_CHECKING:
    from torch import nn

    from tlkit_standard.heads._modules import Front, Tensors
    from tlkit_standard.heads._solve import Method


@dataclass(frozen=True)
class Knn(MemoryHead):
    name = "knn"
    k: int | None = option(None, "how many neighbours vote; none finds it by cross-validation")
    metric: str = option("cosine", "how near a neighbour is", choices=("cosine", "euclidean"))
    weights: str = option("distance", "what a vote counts", choices=("uniform", "distance"))

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.k is not None and self.k < 1:
            yield f"k must be 1 or more, not {self.k}"

    def method(self) -> Method:
        from tlkit_standard.heads._neighbours import NearestNeighbours

        return NearestNeighbours(self.k, cosine=self.metric == "cosine", by_distance=self.weights == "distance")

    def build(self, front: Front, tensors: Tensors) -> nn.Module:
        from tlkit_standard.heads._modules import Neighbours

        return Neighbours(front, tensors, cosine=self.metric == "cosine", by_distance=self.weights == "distance")
