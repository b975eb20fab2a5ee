"""Heads that store training images: the k nearest neighbors, and the support vector machine with an RBF kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

from tlkit.plugin.contract import Head, option
from tlkit.plugin.support import UsageError
from tlkit_standard.heads._base import Candidates, RegularizedHead, Scorer, SolvedHead

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from tlkit_standard.heads._base import Labels, Report, Rows
    from tlkit_standard.heads._modules import Affine, Front, Neighbors, Tensors

NEIGHBORS = (100, 50, 20, 10, 5, 3, 1)
EXPECTED_NEIGHBORS = 10

# The kernel of a row with itself is 1, so one grid suits all rows.
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
EXPECTED_PENALTY = PENALTIES.index(10.0)
TOLERANCE = 1e-5  # stopping tolerance of the final fit: decision values are right to about as much


@dataclass(frozen=True)
class MemoryHead(SolvedHead):
    """Head that stores training images: it can be solved, not trained by gradient."""

    def module(self, width: int, classes: int) -> nn.Module:
        raise UsageError(
            f"the head {self.name!r} is solved and can't be trained by gradient",
            do="take logistic, svm, nearest-mean or mlp, or a strategy that only solves",
        )

    def stand_in(self) -> Head:
        from tlkit_standard.heads.linear import Logistic

        return Logistic(self.power, self.l2)


@dataclass(frozen=True)
class Knn(MemoryHead):
    """The k nearest training images vote: no assumption about the classes; every training image is stored.

    Brute-force search: one matrix product and a TopK.
    """

    name = "knn"
    k: int | None = option(None, "number of neighbors; none: chosen by cross-validation")
    metric: str = option("cosine", "distance between features", choices=("cosine", "euclidean"))
    weights: str = option("distance", "weight of a vote; distance: 1 / distance", choices=("uniform", "distance"))

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.k is not None and self.k < 1:
            yield f"k must be 1 or more, not {self.k}"

    def grid(self, rows: Rows) -> Candidates:
        if self.k is not None:
            if self.k > len(rows):
                raise UsageError(f"k={self.k} asks for more neighbors than {len(rows)} images", do="lower head.k")
            return Candidates([self.k])
        values = [k for k in NEIGHBORS if k <= max(1, len(rows) // 4)]
        return Candidates(values, values.index(min(EXPECTED_NEIGHBORS, values[0])))

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        import torch

        from tlkit_standard.heads._modules import Front, to_tensor

        module = self._neighbors(Front(1.0, l2=False), rows, labels, min(len(rows), self.k or NEIGHBORS[0]), 1.0)
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


@dataclass(frozen=True)
class RbfSvm(RegularizedHead, MemoryHead):
    """Support vector machine with a radial basis function kernel: for classes that no plane separates.

    Fitted with scikit-learn's `SVC(kernel="rbf")`; stores the support vectors.
    """

    name = "rbf-svm"
    # Up to this many rows LIBSVM gets the whole kernel matrix (half a GB at most): one matrix product is many times
    # faster than LIBSVM's own loop over pairs of rows.
    max_kernel_rows: ClassVar[int] = 8000

    gamma: float | str = option("scale", 'kernel coefficient; "scale": 1 / (number of features x their variance)')

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if isinstance(self.gamma, str) and self.gamma != "scale":
            yield f'gamma must be "scale" or a number, not {self.gamma!r}'
        elif not isinstance(self.gamma, str) and self.gamma <= 0.0:
            yield f"gamma must be above 0, not {self.gamma}"

    def grid(self, rows: Rows) -> Candidates:
        return Candidates(PENALTIES, EXPECTED_PENALTY) if self.c is None else Candidates([self.c])

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        from tlkit_standard.heads._solver import decision_scores

        gamma, center = self._gamma(rows), rows.mean(axis=0)
        rows, held = (((part - center) * gamma**0.5).astype("float32") for part in (rows, held))
        among, across = kernel(rows, rows), kernel(held, rows)

        def score(c: float) -> Rows:
            model = self._model(C=c, kernel="precomputed")
            return decision_scores(model.fit(among, labels), across)

        return score

    def fit(
        self, front: Front, affine: Affine, rows: Rows, labels: Labels, choice: float, temperature: float
    ) -> tuple[nn.Module, Report]:
        import numpy as np

        from tlkit_standard.heads._modules import KernelMachine, pair_signs, to_tensor

        gamma, center = self._gamma(rows), rows.mean(axis=0)
        rows = (rows - center) * gamma**0.5
        if len(rows) <= self.max_kernel_rows:
            model = self._model(C=choice, kernel="precomputed", tol=TOLERANCE).fit(kernel(rows, rows), labels)
        else:
            model = self._model(C=choice, kernel="rbf", gamma=1.0, tol=TOLERANCE).fit(rows, labels)
        # Distances are invariant to a shift, and around 0 their expansion loses the fewest digits.
        front.affine = affine.plus(-center).times(gamma**0.5).module()
        support = rows[model.support_]
        tensors = {
            "support": support,
            "offsets": -np.sum(support**2, axis=1),
            "coefficients": pair_coefficients(model),
            "intercepts": model.intercept_,
            "sides": pair_signs(len(model.classes_)),
            "scale": np.array(1.0 / temperature),
        }
        machine = KernelMachine(front, {name: to_tensor(array) for name, array in tensors.items()})
        return machine, {"c": choice, "gamma": gamma, "support_vectors": len(support)}

    def build(self, front: Front, tensors: Tensors) -> nn.Module:
        from tlkit_standard.heads._modules import KernelMachine

        return KernelMachine(front, tensors)

    def _gamma(self, rows: Rows) -> float:
        return 1.0 / (rows.shape[1] * float(rows.var()) or 1.0) if isinstance(self.gamma, str) else self.gamma

    def _model(self, **options: Any) -> Any:
        from sklearn.svm import SVC

        return SVC(class_weight=self.weights, decision_function_shape="ovr", break_ties=True, **options)


def kernel(left: NDArray[Any], right: NDArray[Any]) -> Rows:
    """Return exp(-|l - r|^2) of every pair of rows."""
    import numpy as np
    from sklearn.metrics.pairwise import euclidean_distances

    squares: NDArray[Any] = euclidean_distances(left, right, squared=True)
    similarities: Rows = np.exp(-squares, out=squares).astype(np.float64, copy=False)
    return similarities


def pair_coefficients(model: Any) -> Rows:
    """Return the coefficient `(pairs, vectors)` of every support vector in the decision of every pair of classes.

    LIBSVM stores for each vector its coefficient against each of the other classes, the vectors ordered by class.
    """

    import numpy as np

    dual, counts = model.dual_coef_, model.n_support_
    ends = np.cumsum(counts)
    pairs = list(combinations(range(len(counts)), 2))
    dense = np.zeros((len(pairs), dual.shape[1]))
    for pair, (first, second) in enumerate(pairs):
        for own, row in ((first, second - 1), (second, first)):
            vectors = slice(ends[own] - counts[own], ends[own])
            dense[pair, vectors] = dual[row, vectors]
    return dense
