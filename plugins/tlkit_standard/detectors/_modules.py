"""Modules of detectors, from features `(N, width)` to scores `(N,)`, and what they are fitted with.

Features are scaled to norm 1 first, so that the size of an image's activations does not decide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SMALLEST_NORM = 1e-6


def normalized(features: Tensor) -> Tensor:
    """Return each row at norm 1; one of zeros stays."""
    return features / (features * features).sum(1, keepdim=True).sqrt().clamp_min(SMALLEST_NORM)


def _rows(features: NDArray[np.float32]) -> NDArray[np.float64]:
    rows = features.astype(np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), SMALLEST_NORM))


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values if isinstance(values, Tensor) else np.asarray(values, np.float32)).float()


class Neighbors(nn.Module):
    """1 minus the cosine with the k-th nearest row of `bank` `(rows, width)`, all at norm 1."""

    bank: Tensor

    def __init__(self, bank: Any, k: int) -> None:
        super().__init__()
        self.register_buffer("bank", _tensor(bank))
        self.k = min(k, len(self.bank))

    def forward(self, features: Tensor) -> Tensor:
        return 1.0 - torch.topk(normalized(features) @ self.bank.T, self.k, dim=1).values[:, self.k - 1]


class ClassDistance(nn.Module):
    """Squared Mahalanobis distance to the nearest of `means` `(classes, width)`.

    The inverse covariance is `rest` in all directions, and `directions` `(components, width)` beside it: with x the
    difference, `rest |x|^2 - |directions x|^2`.
    """

    means: Tensor
    directions: Tensor
    rest: Tensor

    def __init__(self, means: Any, directions: Any, rest: Any) -> None:
        super().__init__()
        for name, values in (("means", means), ("directions", directions), ("rest", rest)):
            self.register_buffer(name, _tensor(values))

    def forward(self, features: Tensor) -> Tensor:
        rows = normalized(features)

        def squares(of: Tensor, to: Tensor) -> Tensor:
            return (of * of).sum(1, keepdim=True) + (to * to).sum(1)[None] - 2.0 * of @ to.T

        across = squares(rows @ self.directions.T, self.means @ self.directions.T)
        return (self.rest * squares(rows, self.means) - across).min(dim=1).values


class Outside(nn.Module):
    """Norm of what of the rows lies outside `mean` `(width,)` plus the span of the orthonormal `basis` `(n, width)`."""

    mean: Tensor
    basis: Tensor

    def __init__(self, mean: Any, basis: Any) -> None:
        super().__init__()
        self.register_buffer("mean", _tensor(mean))
        self.register_buffer("basis", _tensor(basis))

    def forward(self, features: Tensor) -> Tensor:
        rows = normalized(features) - self.mean
        outside = rows - rows @ self.basis.T @ self.basis
        return (outside * outside).sum(1).sqrt()


class LogitEnergy(nn.Module):
    """Minus log sum exp of a head's logits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return -logits.logsumexp(dim=1)


class Sum(nn.Module):
    """Sum of two scores, each less its mean, and divided by its deviation: `scales` `(2, 2)`."""

    scales: Tensor

    def __init__(self, one: nn.Module, other: nn.Module, scales: Any) -> None:
        super().__init__()
        self.one, self.other = one, other
        self.register_buffer("scales", _tensor(scales))

    def forward(self, features: Tensor) -> Tensor:
        one: Tensor = (self.one(features) - self.scales[0, 0]) / self.scales[0, 1]
        other: Tensor = (self.other(features) - self.scales[1, 0]) / self.scales[1, 1]
        return one + other


def bank(features: NDArray[np.float32], labels: NDArray[np.int64], most: int) -> NDArray[np.float64]:
    """Return up to so many rows at norm 1, the same number of each class as far as there are."""
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = labels == label
        turn[rows] = np.arange(rows.sum())
    return _rows(features[np.sort(np.argsort(turn, kind="stable")[:most])])


def shrunk(
    features: NDArray[np.float32], labels: NDArray[np.int64], components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return class means, directions and the rest of the inverse of the shrunk covariance within classes.

    The shrinkage is that of Ledoit and Wolf (Journal of Multivariate Analysis 2004), towards the same variance in all
    directions.
    """
    rows = _rows(features)
    kinds, numbers = np.unique(labels, return_inverse=True)
    means = np.stack([rows[labels == label].mean(0) for label in kinds])
    centered = rows - means[numbers]
    count, width = centered.shape
    _, scale, axes = np.linalg.svd(centered, full_matrices=False)
    variances = scale**2 / count
    mean = max(float(variances.sum()) / width, 1e-12)
    spread = float((variances**2).sum() - width * mean**2)  # squared distance of the covariance to the target
    norms = (centered**2).sum(1)
    noise = float((norms**2).mean() - (variances**2).sum()) / count
    shrinkage = float(np.clip(noise / max(spread, 1e-24), 1e-3, 1.0))
    kept = slice(0, components)
    left = (1 - shrinkage) * variances + shrinkage * mean
    outside = (1 - shrinkage) * float(variances[components:].sum()) / max(1, width - components) + shrinkage * mean
    gain = np.maximum(1 / outside - 1 / left[kept], 0.0)
    return means, np.sqrt(gain)[:, None] * axes[kept], 1 / outside


def principal(features: NDArray[np.float32], variance: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean, and an orthonormal basis of the space that holds a share of the variance."""
    rows = _rows(features)
    mean = rows.mean(0)
    _, scale, axes = np.linalg.svd(rows - mean, full_matrices=False)
    held = np.cumsum(scale**2) / max(float((scale**2).sum()), 1e-24)
    count = min(int(np.searchsorted(held, variance)) + 1, max(1, len(rows) // 2), len(axes))
    return mean, axes[:count]


def scale(module: nn.Module, features: NDArray[np.float32]) -> tuple[float, float]:
    """Return mean and standard deviation of a score over images."""
    with torch.inference_mode():
        values = module.eval()(torch.from_numpy(features)).double()
    return float(values.mean()), max(float(values.std(unbiased=False)), 1e-6)
