"""Maps of images by their features: principal components, t-SNE and UMAP, and how far each can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 1000
LEAST, MIN_POINTS = 3, 10  # for principal components; that neighbors can be preserved among
COMPONENTS = 50  # that t-SNE and UMAP start from
NEIGHBORS = 10
WITHOUT_UNIT = "axes without a unit: images with similar features are close"


@dataclass(frozen=True, slots=True)
class Layout:
    """Places `(N, 2)` in 0..1 of images, by a method; `trustworthiness` (0 to 1) tells how many neighbors are true.

    `axes` says what they mean.
    """

    method: str
    axes: str
    places: NDArray[np.float64]
    trustworthiness: float


def drawn(truth: NDArray[np.int64], wrong: NDArray[np.bool_], most: int = MAX_POINTS) -> NDArray[np.int64]:
    """Return up to so many rows, evenly from all classes, with mistakes in the share that they have."""
    order = np.lexsort([wrong, truth])
    count = min(most, len(order))
    rows: NDArray[np.int64] = np.sort(order[np.arange(count) * len(order) // max(1, count)])
    return rows


def layouts(features: NDArray[np.float32], seed: int = 0) -> Iterator[Layout]:
    """Yield the maps of images by their features `(N, width)` at norm 1; of too few images there are none."""
    count = len(features)
    centered = features - features.mean(0)
    if count < LEAST or min(features.shape) < 2 or not np.ptp(centered, axis=0).any():
        return
    left, scale, _ = np.linalg.svd(centered, full_matrices=False)
    components = left[:, :COMPONENTS] * scale[:COMPONENTS]
    distances = _distances(components)
    first, second = scale[:2] ** 2 / (scale**2).sum()
    axes = f"horizontal: the first principal component, {first:.0%} of the variance; vertical: the second, {second:.0%}"
    for method, said, make in _methods(components, seed):
        places = np.asarray(make(), np.float64)
        low, high = places.min(0), places.max(0)
        trust = trustworthiness(distances, _distances(places))
        yield Layout(method, said or axes, (places - low) / np.maximum(high - low, 1e-12), trust)


def _methods(components: NDArray[np.float32], seed: int) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield the methods that are installed, with what their axes mean: PCA, t-SNE and UMAP.

    Van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    yield "principal components", "", lambda: components[:, :2]
    if len(components) < MIN_POINTS:
        return
    if find_spec("sklearn") is not None:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(components) - 1) / 3)
        method = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
        yield "t-SNE", f"{WITHOUT_UNIT}; perplexity {perplexity:.0f}", lambda: method.fit_transform(components)
    if find_spec("umap") is not None:
        from umap import UMAP

        yield "UMAP", WITHOUT_UNIT, lambda: UMAP(random_state=seed, n_jobs=1).fit_transform(components)


def trustworthiness(original: NDArray[Any], placed: NDArray[Any], neighbors: int = NEIGHBORS) -> float:
    """Return how far the nearest neighbors of a map `(N, N)` are neighbors in the original distances `(N, N)` too.

    Venna and Kaski, "Neighborhood preservation in nonlinear projection methods", ICANN 2001.
    """
    count = len(original)
    near = min(neighbors, (count - 1) // 2)
    ranks = np.empty((count, count), np.int64)
    np.put_along_axis(ranks, np.argsort(original, axis=1, kind="stable"), np.arange(count)[None], axis=1)
    nearest = np.argsort(placed, axis=1, kind="stable")[:, :near]
    excess = np.maximum(np.take_along_axis(ranks, nearest, axis=1) - (near - 1), 0).sum()
    return float(1 - 2 * excess / (count * near * (2 * count - 3 * near - 1)))


def _distances(points: NDArray[Any]) -> NDArray[np.float64]:
    """Return the squared distances `(N, N)` of points; none is its own neighbor."""
    rows = points.astype(np.float64)
    squares = (rows**2).sum(1)
    distances: NDArray[np.float64] = squares[:, None] + squares[None] - 2 * rows @ rows.T
    np.fill_diagonal(distances, np.inf)
    return distances
