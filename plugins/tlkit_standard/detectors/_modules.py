"""Modules of detectors, from features `(N, width)` to scores `(N,)`, and what they are fitted with.

Features are scaled to norm 1 first, so that the size of an image's activations does not decide. All distances are
norms of differences: squares that are subtracted from each other, or a cosine from 1, leave float32 few digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SMALLEST_NORM = 1e-6
SMALLEST_DISTANCE = 1e-3  # of rows of norm 1
# The least deviations that a sum is made with. A head that knows the training images by heart, such as nearest
# neighbors, gives all of them the same energy but for rounding; of held-out images it differs by about one nat.
MIN_DISTANCE, MIN_ENERGY = 5e-3, 0.3


def normalized(features: Tensor) -> Tensor:
    """Return each row at norm 1; one of zeros stays."""
    return features / norms(features)[:, None].clamp_min(SMALLEST_NORM)


def norms(rows: Tensor) -> Tensor:
    """Return the norm of each row `(N,)`."""
    return (rows * rows).sum(1).sqrt()


def _rows(features: NDArray[np.float32]) -> NDArray[np.float64]:
    rows = features.astype(np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), SMALLEST_NORM))


class Buffered(nn.Module):
    """Module whose state are arrays that were fitted in float64."""

    def keep(self, **values: Any) -> None:
        """Store arrays or tensors as buffers in float32."""
        for name, value in values.items():
            tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, np.float32))
            self.register_buffer(name, tensor.float())


class Neighbors(Buffered):
    """Distance to the k-th nearest row of `bank` `(rows, width)`, all at norm 1.

    Those with the largest cosines are candidates, twice as many: rounding may exchange some that are almost as near.
    Distances that are smaller than it hardly count.
    """

    bank: Tensor

    def __init__(self, bank: Any, k: int) -> None:
        super().__init__()
        self.keep(bank=bank)
        self.k = min(k, len(self.bank))

    def forward(self, features: Tensor) -> Tensor:
        rows = normalized(features)
        candidates = torch.topk(rows @ self.bank.T, min(2 * self.k, len(self.bank)), dim=1).indices
        apart = rows[:, None] - nn.functional.embedding(candidates, self.bank)
        squares = (apart * apart).sum(2)
        nearest = torch.topk(squares, self.k, dim=1, largest=False).values[:, self.k - 1]
        return (nearest + SMALLEST_DISTANCE**2).sqrt()


class ClassDistance(Buffered):
    """Mahalanobis distance to the nearest class mean: the norm of a difference of whitened rows.

    Rows less `mean` `(width,)` are whitened by `rest` in all directions, with `gains` `(components,)` beside it along
    the orthonormal `directions` `(components, width)`. `means` `(classes, width)` are whitened already.
    """

    mean: Tensor
    means: Tensor
    directions: Tensor
    gains: Tensor
    rest: Tensor

    def __init__(self, mean: Any, means: Any, directions: Any, gains: Any, rest: Any) -> None:
        super().__init__()
        self.keep(mean=mean, means=means, directions=directions, gains=gains, rest=rest)

    def forward(self, features: Tensor) -> Tensor:
        rows = normalized(features) - self.mean
        rows = self.rest * rows + (self.gains * (rows @ self.directions.T)) @ self.directions
        nearest = (rows @ self.means.T - 0.5 * (self.means * self.means).sum(1)).argmax(1)
        return norms(rows - self.means.index_select(0, nearest))


class Outside(Buffered):
    """Norm of what of the rows lies outside `mean` `(width,)` plus the span of the orthonormal `basis` `(n, width)`."""

    mean: Tensor
    basis: Tensor

    def __init__(self, mean: Any, basis: Any) -> None:
        super().__init__()
        self.keep(mean=mean, basis=basis)

    def forward(self, features: Tensor) -> Tensor:
        rows = normalized(features) - self.mean
        return norms(rows - rows @ self.basis.T @ self.basis)


class LogitEnergy(nn.Module):
    """Minus log sum exp of a head's logits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return -logits.logsumexp(dim=1)


class Sum(Buffered):
    """Sum of two scores, each less its mean, and divided by its deviation: `scales` `(2, 2)`."""

    scales: Tensor

    def __init__(self, one: nn.Module, other: nn.Module, scales: Any) -> None:
        super().__init__()
        self.one, self.other = one, other
        self.keep(scales=scales)

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


def whitening(features: NDArray[np.float32], labels: NDArray[np.int64], components: int) -> dict[str, Any]:
    """Return what `ClassDistance` holds: means, and the inverse root of the shrunk covariance within classes.

    The shrinkage is that of Ledoit and Wolf (Journal of Multivariate Analysis 2004), towards the same variance in all
    directions. Beyond the first `components` the variance is the mean of the rest.
    """
    rows = _rows(features)
    kinds, numbers = np.unique(labels, return_inverse=True)
    means = np.stack([rows[labels == label].mean(0) for label in kinds])
    centered = rows - means[numbers]
    count, width = centered.shape
    variances, axes = _spectrum(centered)
    mean = max(float(variances.sum()) / width, 1e-12)
    spread = float((variances**2).sum() - width * mean**2)  # squared distance of the covariance to the target
    noise = float((((centered**2).sum(1)) ** 2).mean() - (variances**2).sum()) / count
    shrinkage = float(np.clip(noise / max(spread, 1e-24), 1e-3, 1.0))
    left = (1 - shrinkage) * variances[:components] + shrinkage * mean
    beyond = float(variances[components:].sum()) / max(1, width - components)
    outside = (1 - shrinkage) * beyond + shrinkage * mean
    rest, directions = outside**-0.5, axes[:components]
    gains = np.maximum(left, outside) ** -0.5 - rest
    center = rows.mean(0)
    apart = means - center
    means = rest * apart + (gains * (apart @ directions.T)) @ directions
    return {"mean": center, "means": means, "directions": directions, "gains": gains, "rest": rest}


def _spectrum(centered: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the variances of rows of mean 0 along their principal axes, the largest first, and the axes in rows.

    By the smaller of the two matrices of products, which takes a third of the time of a singular value decomposition.
    """
    count, width = centered.shape
    products = centered @ centered.T if count < width else centered.T @ centered
    values, vectors = (each[..., ::-1] for each in np.linalg.eigh(products))
    kept = max(1, int((values > 1e-10 * values[0]).sum()))
    values, vectors = np.maximum(values[:kept], 1e-24), vectors[:, :kept]
    axes = (vectors.T @ centered) / np.sqrt(values)[:, None] if count < width else vectors.T
    return values / count, axes


def principal(features: NDArray[np.float32], variance: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean, and an orthonormal basis of the space that holds a share of the variance."""
    rows = _rows(features)
    mean = rows.mean(0)
    variances, axes = _spectrum(rows - mean)
    held = np.cumsum(variances) / max(float(variances.sum()), 1e-24)
    count = min(int(np.searchsorted(held, variance)) + 1, max(1, len(rows) // 2), len(axes))
    return mean, axes[:count]


def scale(module: nn.Module, features: NDArray[np.float32], least: float) -> tuple[float, float]:
    """Return mean and standard deviation of a score over images; of the latter at least so much."""
    with torch.inference_mode():
        values = module.eval()(torch.from_numpy(features)).double()
    return float(values.mean()), max(float(values.std(unbiased=False)), least)
