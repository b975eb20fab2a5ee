"""Linear discriminant analysis as a head of tlkit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit import Head, hookimpl, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


@dataclass(frozen=True)
class LdaHead(Head):
    """Linear discriminant analysis: class means, and one covariance for all classes, shrunk."""

    name = "lda"
    shrinkage: float = option(0.1, "share of the identity in the covariance", minimum=0.0, maximum=1.0)

    def module(self, width: int, classes: int) -> nn.Module:
        from torch import nn

        return nn.Linear(width, classes)

    def solve(
        self, features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, seed: int
    ) -> nn.Module | None:
        """Return the linear layer of the discriminants."""
        import numpy as np
        import torch

        x = features.astype(np.float64)
        means = np.stack([x[labels == label].mean(axis=0) for label in range(classes)])
        centered = x - means[labels]
        covariance = centered.T @ centered / max(1, len(x) - classes)
        scale = np.trace(covariance) / len(covariance)
        covariance = (1 - self.shrinkage) * covariance + self.shrinkage * scale * np.eye(len(covariance))
        weight = np.linalg.solve(covariance, means.T).T
        priors = np.log(np.bincount(labels, minlength=classes) / len(labels))
        layer = self.module(features.shape[1], classes)
        layer.load_state_dict(
            {
                "weight": torch.from_numpy(weight).float(),
                "bias": torch.from_numpy(priors - 0.5 * (weight * means).sum(axis=1)).float(),
            }
        )
        return layer.eval()


@hookimpl
def tlkit_heads() -> Iterable[Head]:
    """Return the head."""
    return [LdaHead()]
