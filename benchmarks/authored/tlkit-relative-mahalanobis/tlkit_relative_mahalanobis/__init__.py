"""The relative Mahalanobis distance as a detector of tlkit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlkit import Detector, hookimpl, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


@dataclass(frozen=True)
class RelativeMahalanobisDetector(Detector):
    """Mahalanobis distance to the nearest class mean, less that to all training images (Ren et al. 2021)."""

    name = "relative-mahalanobis"
    shrinkage: float = option(0.1, "share of the identity in the covariances", minimum=0.0, maximum=1.0)

    def fit(self, features: NDArray[np.float32], labels: NDArray[np.int64], head: nn.Module, seed: int) -> nn.Module:
        """Return the module with the means and the whitening matrices of the classes and of all images."""
        import numpy as np
        import torch

        x = features.astype(np.float64)
        known, index = np.unique(labels, return_inverse=True)
        means = np.stack([x[labels == label].mean(0) for label in known])
        fitted = {
            "means": means,
            "whiten": self.whitening(x - means[index]),
            "center": x.mean(0),
            "whiten_all": self.whitening(x - x.mean(0)),
        }
        return self.restore({name: torch.from_numpy(array).float() for name, array in fitted.items()}, head)

    def whitening(self, centered: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the matrix that turns rows of this covariance into rows of covariance 1 / width."""
        import numpy as np

        covariance = centered.T @ centered / len(centered)
        width = len(covariance)
        scale = max(np.trace(covariance) / width, np.finfo(np.float32).tiny)
        covariance = (1 - self.shrinkage) * covariance + self.shrinkage * scale * np.eye(width)
        inverse: NDArray[np.float64] = np.linalg.inv(np.linalg.cholesky(covariance))
        return np.divide(inverse.T, np.sqrt(width), dtype=np.float64)

    def restore(self, tensors: Mapping[str, Any], head: nn.Module) -> nn.Module:
        """Return the module whose state is `tensors`."""
        import torch
        from torch import Tensor, nn

        class Distance(nn.Module):
            means: Tensor
            whiten: Tensor
            center: Tensor
            whiten_all: Tensor

            def __init__(self) -> None:
                super().__init__()
                for name in ("means", "whiten", "center", "whiten_all"):
                    self.register_buffer(name, tensors[name])

            def forward(self, features: Tensor) -> Tensor:
                apart = torch.matmul(features, self.whiten)[:, None] - torch.matmul(self.means, self.whiten)
                whole = torch.matmul(features - self.center, self.whiten_all)
                return apart.pow(2).sum(2).min(1).values - whole.pow(2).sum(1)

        return Distance().eval()


@hookimpl
def tlkit_detectors() -> Iterable[Detector]:
    """Return the detector."""
    return [RelativeMahalanobisDetector()]
