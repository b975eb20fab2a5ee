"""The k nearest training images vote: no assumption about the classes; every training image is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit.errors import UsageError
from tlkit.plugin.contract import option
from tlkit_standard.heads._base import Candidates, MemoryHead, Scorer

if TYPE_CHECKING:
    from torch import nn

    from tlkit_standard.heads._base import Labels, Report, Rows
    from tlkit_standard.heads._modules import Affine, Front, Neighbors, Tensors

CANDIDATES = (100, 50, 20, 10, 5, 3, 1)
EXPECTED = 10


@dataclass(frozen=True)
class Knn(MemoryHead):
    """Brute-force search: one matrix product and a TopK."""

    name = "knn"
    k: int | None = option(None, "number of neighbors; none: chosen by cross-validation")
    metric: str = option("cosine", "distance between features", choices=("cosine", "euclidean"))
    weights: str = option("distance", "weight of a vote; distance: 1 / distance", choices=("uniform", "distance"))

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.k is not None and self.k < 1:
            yield f"k must be 1 or more, not {self.k}"

    def candidates(self, rows: Rows) -> Candidates:
        if self.k is not None:
            if self.k > len(rows):
                raise UsageError(f"k={self.k} asks for more neighbors than {len(rows)} images", do="lower head.k")
            return Candidates([self.k])
        values = [k for k in CANDIDATES if k <= max(1, len(rows) // 4)]
        return Candidates(values, values.index(min(EXPECTED, values[0])))

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        import torch

        from tlkit_standard.heads._modules import Front, to_tensor

        module = self._neighbors(Front(1.0, l2=False), rows, labels, min(len(rows), self.k or CANDIDATES[0]), 1.0)
        with torch.inference_mode():
            queries = module.embed(to_tensor(held))
            index = module.nearest(queries)

        def score(k: float) -> Rows:
            with torch.inference_mode():
                return module.log_shares(queries, index[:, : int(k)]).double().numpy()

        return score

    def fit(
        self, front: Front, affine: Affine, rows: Rows, labels: Labels, choice: float, temperature: float
    ) -> tuple[nn.Module, Report]:
        if self.metric != "cosine":
            # Distances are invariant to a shift, and around 0 their expansion loses the fewest digits.
            center = rows.mean(axis=0)
            affine, rows = affine.plus(-center), rows - center
        if (affine.weight != 1.0).any() or (affine.bias != 0.0).any():
            front.affine = affine.module()
        return self._neighbors(front, rows, labels, int(choice), temperature), {"k": int(choice)}

    def build(self, front: Front, tensors: Tensors) -> Neighbors:
        from tlkit_standard.heads._modules import Neighbors

        return Neighbors(front, tensors, cosine=self.metric == "cosine", by_distance=self.weights == "distance")

    def _neighbors(self, front: Front, rows: Rows, labels: Labels, k: int, temperature: float) -> Neighbors:
        import numpy as np
        import torch

        from tlkit_standard.heads._modules import to_tensor

        cosine = self.metric == "cosine"
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        if cosine:
            rows = rows / np.where(norms > 0.0, norms, 1.0)
        tensors = {
            "rows": to_tensor(rows),
            "offsets": to_tensor(np.zeros(len(rows)) if cosine else -0.5 * norms[:, 0] ** 2),
            "votes": to_tensor(np.eye(labels.max() + 1)[labels]),
            "neighbors": torch.tensor(k),
            "scale": torch.tensor(1.0 / temperature),
        }
        return self.build(front, tensors)
