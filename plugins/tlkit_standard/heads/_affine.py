"""Standardise, PCA, whitening and rotation as one affine map, fitted with scikit-learn in float64.

A chain of affine maps is an affine map, so whatever the options say the deployed head pays for one at most, and
a linear classifier behind it swallows even that one (`Affine.under`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Affine:
    """Rows `(n, width)` to rows `(n, out)`, all float64.

    `weight` is `(out, width)`, or `(width,)` where each feature is only scaled; `bias` is `(out,)`.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def __call__(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = rows * self.weight if self.weight.ndim == 1 else rows @ self.weight.T
        scaled += self.bias
        return scaled

    def under(
        self, weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight `(k, width)` and bias `(k,)` of the linear layer `weight` `(k, out)`, `bias` on top of this map."""
        folded = weight * self.weight if self.weight.ndim == 1 else weight @ self.weight
        return folded, bias + weight @ self.bias

    def onto(self, weight: NDArray[np.float64]) -> Affine:
        """This map followed by the linear map `weight` `(k, out)`."""
        return Affine(*self.under(weight, np.zeros(len(weight))))

    def shifted(self, offset: NDArray[np.float64]) -> Affine:
        """This map followed by adding `offset` `(out,)`."""
        return replace(self, bias=self.bias + offset)

    def scaled(self, factor: float) -> Affine:
        """This map followed by multiplying with `factor`."""
        return Affine(self.weight * factor, self.bias * factor)

    @property
    def trivial(self) -> bool:
        """Whether it changes nothing."""
        return self.weight.ndim == 1 and bool(np.all(self.weight == 1.0) and np.all(self.bias == 0.0))


def fit(rows: NDArray[np.float64], *, standardise: bool, pca: int, whiten: bool) -> Affine:
    """The affine map that standardises, then projects to `pca` components (0: keeps all), then whitens.

    Columns that never vary are left at zero, as `StandardScaler` does. PCA never keeps a direction in which the
    rows do not vary: whitening would divide by rounding errors there.
    """
    affine = _standardise(rows) if standardise else Affine(np.ones(rows.shape[1]), np.zeros(rows.shape[1]))
    return _project(affine, affine(rows), pca, whiten) if pca or whiten else affine


def rotate(affine: Affine, rows: NDArray[np.float64]) -> Affine:
    """`affine` followed by a rotation into the space its images of `rows` span, where that is smaller.

    With fewer rows than features, a linear classifier with an L2 penalty has no weight outside the span of its
    training rows (representer theorem: Schölkopf, Herbrich & Smola 2001), and distances between class means lie
    inside it. Solving there gives the same classifier from n x n numbers instead of n x width. QR, unlike
    an eigendecomposition of the Gram matrix, is exact to rounding however close to each other the rows are.
    """
    images = affine(rows)
    if len(images) >= images.shape[1]:
        return affine
    basis, _ = np.linalg.qr(images.T)
    return affine.onto(basis.T)


def _standardise(rows: NDArray[np.float64]) -> Affine:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(rows)
    return Affine(1.0 / scaler.scale_, -scaler.mean_ / scaler.scale_)


def _project(affine: Affine, images: NDArray[np.float64], pca: int, whiten: bool) -> Affine:
    from sklearn.decomposition import PCA

    # Both solvers are exact and deterministic; "auto" may draw random projections.
    fitted = PCA(svd_solver="full" if len(images) < images.shape[1] else "covariance_eigh").fit(images)
    spread = np.sqrt(fitted.explained_variance_)
    rank = int(np.sum(spread > spread[0] * np.sqrt(np.finfo(np.float64).eps)))
    kept = min(pca or rank, rank)
    components = fitted.components_[:kept]
    if whiten:
        components = components / spread[:kept, None]
    return affine.shifted(-fitted.mean_).onto(components)
