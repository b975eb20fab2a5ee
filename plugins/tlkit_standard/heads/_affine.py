"""Standardise, PCA, whitening and rotation as one affine map, fitted with scikit-learn in float64.

A chain of affine maps is an affine map, so whatever the options say the deployed head pays for one at most, and
a linear classifier behind it swallows even that one (`Affine.under`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Features are float32: a direction in which they vary this much less than in the first is their rounding.
_NOISE = 1e-6


@dataclass(frozen=True)
class Affine:
    """Rows `(n, width)` to rows `(n, out)`, all float64.

    `weight` is `(out, width)`, or `(width,)` where each feature is only scaled; `bias` is `(out,)`.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def __call__(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        image = rows * self.weight if self.weight.ndim == 1 else rows @ self.weight.T
        image += self.bias
        return image

    def under(
        self, weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The linear layer `weight` `(k, out)`, `bias` `(k,)` on top of this map, as one layer `(k, width)`, `(k,)`."""
        folded = weight * self.weight if self.weight.ndim == 1 else weight @ self.weight
        return folded, bias + weight @ self.bias

    def then(self, weight: NDArray[np.float64]) -> Affine:
        """This map followed by the linear map `weight` `(k, out)`."""
        return Affine(*self.under(weight, np.zeros(len(weight))))

    def plus(self, offset: NDArray[np.float64]) -> Affine:
        """This map followed by adding `offset` `(out,)`."""
        return Affine(self.weight, self.bias + offset)

    def times(self, factor: float) -> Affine:
        """This map followed by multiplying with `factor`."""
        return Affine(self.weight * factor, self.bias * factor)


def fit(rows: NDArray[np.float64], *, standardise: bool, pca: int, whiten: bool) -> Affine:
    """The affine map that standardises, then projects to `pca` components (0: keeps all), then whitens.

    A column that never varies becomes zero, as in `StandardScaler`. PCA keeps no direction in which the rows do not
    vary, where whitening would magnify rounding errors: there may be fewer components than asked for.
    """
    affine = _standardise(rows) if standardise else Affine(np.ones(rows.shape[1]), np.zeros(rows.shape[1]))
    return _project(affine, affine(rows), pca, whiten) if pca or whiten else affine


def rotate(affine: Affine, rows: NDArray[np.float64]) -> Affine:
    """`affine` followed by a rotation into the space that its images of `rows` span, where that is smaller.

    With fewer rows than features, a linear classifier with an L2 penalty has no weight outside the span of its
    training rows (the representer theorem: Schölkopf, Herbrich & Smola, COLT 2001), and neither have differences
    of class means. Solving there gives the same classifier from n x n numbers instead of n x width. QR, unlike an
    eigendecomposition of the Gram matrix, is exact to rounding however close to each other the rows are.
    """
    image = affine(rows)
    if len(image) >= image.shape[1]:
        return affine
    basis, _ = np.linalg.qr(image.T)
    return affine.then(basis.T)


def _standardise(rows: NDArray[np.float64]) -> Affine:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(rows)
    return Affine(1.0 / scaler.scale_, -scaler.mean_ / scaler.scale_)


def _project(affine: Affine, image: NDArray[np.float64], pca: int, whiten: bool) -> Affine:
    from sklearn.decomposition import PCA

    # Both solvers are exact and deterministic; "auto" may draw random projections.
    fitted = PCA(svd_solver="full" if len(image) < image.shape[1] else "covariance_eigh").fit(image)
    spread = np.sqrt(fitted.explained_variance_)
    rank = int(np.sum(spread > _NOISE * spread[0]))
    if rank == 0:  # all rows are the same: one component that is always zero
        return affine.then(np.zeros((1, image.shape[1])))
    kept = min(pca or rank, rank)
    components = fitted.components_[:kept]
    return affine.plus(-fitted.mean_).then(components / spread[:kept, None] if whiten else components)
