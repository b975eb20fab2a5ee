"""The k nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tlkit.errors import UsageError
from tlkit_standard.heads._modules import Front, Map, Neighbours
from tlkit_standard.heads._selection import Path, Scorer
from tlkit_standard.heads._solve import Fact, Method

if TYPE_CHECKING:
    from torch import nn

    from tlkit_standard.heads._affine import Affine
    from tlkit_standard.heads._selection import Labels, Rows

GRID = (100, 50, 20, 10, 5, 3, 1)
EXPECTED = 10


@dataclass(frozen=True)
class NearestNeighbours(Method):
    """Brute force; see `_modules.Neighbours`."""

    k: int | None
    cosine: bool
    by_distance: bool

    def path(self, rows: Rows) -> Path:
        if self.k is not None:
            if self.k > len(rows):
                raise UsageError(f"k={self.k} asks for more neighbours than {len(rows)} images", do="lower head.k")
            return Path([self.k])
        grid = [k for k in GRID if k <= max(1, len(rows) // 4)]
        return Path(grid, grid.index(min(EXPECTED, grid[0])))

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        front = Front(1.0, l2=False)
        module = self._module(front, rows, labels, min(len(rows), self.k or GRID[0]), 1.0)
        with torch.inference_mode():
            queries = module.embed(_tensor(held))
            index = module.nearest(queries)

        def score(k: float) -> Rows:
            with torch.inference_mode():
                return module.log_shares(queries, index[:, : int(k)]).double().numpy()

        return score

    def module(
        self, front: Front, affine: Affine, rows: Rows, labels: Labels, choice: float, temperature: float
    ) -> tuple[nn.Module, dict[str, Fact]]:
        if not self.cosine:
            # Distances don't feel a shift, and around 0 their expansion loses the fewest digits.
            centre = rows.mean(axis=0)
            affine, rows = affine.plus(-centre), rows - centre
        if np.any(affine.weight != 1.0) or np.any(affine.bias != 0.0):
            front.affine = Map(_tensor(affine.weight), _tensor(affine.bias))
        return self._module(front, rows, labels, int(choice), temperature), {"k": int(choice)}

    def _module(self, front: Front, rows: Rows, labels: Labels, k: int, temperature: float) -> Neighbours:
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        if self.cosine:
            rows = rows / np.where(norms > 0.0, norms, 1.0)
        offsets = np.zeros(len(rows)) if self.cosine else -0.5 * norms[:, 0] ** 2
        tensors = {
            "rows": _tensor(rows),
            "offsets": _tensor(offsets),
            "votes": _tensor(np.eye(labels.max() + 1)[labels]),
            "neighbours": torch.tensor(k),
            "scale": torch.tensor(1.0 / temperature),
        }
        return Neighbours(front, tensors, cosine=self.cosine, by_distance=self.by_distance)


def _tensor(array: Rows) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32, order="C"))  # in the order in which it will be stored
