"""The support vector machine with RBF kernel, as scikit-learn fits it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tlkit_standard.heads._estimators import decide
from tlkit_standard.heads._modules import Front, KernelMachine, Map
from tlkit_standard.heads._selection import Path, Scorer
from tlkit_standard.heads._solve import Fact, Method

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from tlkit_standard.heads._affine import Affine
    from tlkit_standard.heads._selection import Labels, Rows

# The kernel of a row with itself is 1, so one grid suits all rows.
GRID = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
EXPECTED = GRID.index(10.0)
PRECISE = 1e-5  # the stopping tolerance of the fit that is kept: decision values are right to about as much

# Up to this many rows the whole kernel matrix is handed to LIBSVM (half a GB at most): one matrix product is many times
# faster than LIBSVM's own loop over pairs of rows.
MOST_IN_MEMORY = 8000


@dataclass(frozen=True)
class Rbf(Method):
    """`SVC(kernel="rbf")`; without `gamma`, 1 / (features x variance of all their values)."""

    c: float | None
    class_weight: str | None
    gamma: float | None

    def path(self, rows: Rows) -> Path:
        return Path(GRID, EXPECTED) if self.c is None else Path([self.c])

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        gamma, centre = self._gamma(rows), rows.mean(axis=0)
        rows, held = (((part - centre) * gamma**0.5).astype(np.float32) for part in (rows, held))
        among, across = kernel(rows, rows), kernel(held, rows)

        def score(c: float) -> Rows:
            model = self._model(C=c, kernel="precomputed")
            return decide(model.fit(among, labels), across)

        return score

    def module(
        self, front: Front, affine: Affine, rows: Rows, labels: Labels, choice: float, temperature: float
    ) -> tuple[nn.Module, dict[str, Fact]]:
        gamma, centre = self._gamma(rows), rows.mean(axis=0)
        rows = (rows - centre) * gamma**0.5
        if len(rows) <= MOST_IN_MEMORY:
            model = self._model(C=choice, kernel="precomputed", tol=PRECISE).fit(kernel(rows, rows), labels)
        else:
            model = self._model(C=choice, kernel="rbf", gamma=1.0, tol=PRECISE).fit(rows, labels)
        # Distances don't feel a shift, and around 0 their expansion loses the fewest digits.
        moved = affine.plus(-centre).times(gamma**0.5)
        front.affine = Map(_tensor(moved.weight), _tensor(moved.bias))
        support = rows[model.support_]
        tensors = {
            "support": support,
            "offsets": -np.sum(support**2, axis=1),
            "coefficients": coefficients(model),
            "intercepts": model.intercept_,
            "sides": sides(len(model.classes_)),
            "scale": np.array(1.0 / temperature),
        }
        machine = KernelMachine(front, {name: _tensor(array) for name, array in tensors.items()})
        return machine, {"c": choice, "gamma": gamma, "support_vectors": len(support)}

    def _gamma(self, rows: Rows) -> float:
        return self.gamma or 1.0 / (rows.shape[1] * float(rows.var()) or 1.0)

    def _model(self, **options: Any) -> Any:
        from sklearn.svm import SVC

        return SVC(class_weight=self.class_weight, decision_function_shape="ovr", break_ties=True, **options)


def kernel(left: NDArray[Any], right: NDArray[Any]) -> Rows:
    """exp(-|l - r|^2) of every pair of rows."""
    from sklearn.metrics.pairwise import euclidean_distances

    squares: NDArray[Any] = euclidean_distances(left, right, squared=True)
    similar: Rows = np.exp(-squares, out=squares).astype(np.float64, copy=False)
    return similar


def coefficients(model: Any) -> Rows:
    """The weight `(pairs, vectors)` of every support vector in the decision of every pair of classes.

    LIBSVM keeps for each vector its coefficient against each of the other classes, the vectors ordered by class.
    """
    dual, counts = model.dual_coef_, model.n_support_
    ends = np.cumsum(counts)
    pairs = list(combinations(range(len(counts)), 2))
    dense = np.zeros((len(pairs), dual.shape[1]))
    for pair, (first, second) in enumerate(pairs):
        for own, row in ((first, second - 1), (second, first)):
            vectors = slice(ends[own] - counts[own], ends[own])
            dense[pair, vectors] = dual[row, vectors]
    return dense


def sides(classes: int) -> Rows:
    """Which class `(classes, pairs)` a positive decision speaks for, 1, and which against, -1.

    For the first of the pair; but where there are just two classes, for the second.
    """
    pairs = list(combinations(range(classes), 2))
    signs = np.zeros((classes, len(pairs)))
    for pair, (first, second) in enumerate(pairs):
        signs[first, pair], signs[second, pair] = (1.0, -1.0) if classes > 2 else (-1.0, 1.0)
    return signs


def _tensor(array: Rows) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32, order="C"))  # in the order in which it will be stored
