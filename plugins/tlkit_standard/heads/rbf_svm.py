"""Support vector machine with a radial basis function kernel: for classes that no plane separates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tlkit.plugin.contract import option
from tlkit_standard.heads._base import Candidates, MemoryHead, RegularizedHead, Scorer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from tlkit_standard.heads._base import Labels, Report, Rows
    from tlkit_standard.heads._modules import Affine, Front, Tensors

# The kernel of a row with itself is 1, so one grid suits all rows.
CANDIDATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
EXPECTED = CANDIDATES.index(10.0)
TOLERANCE = 1e-5  # stopping tolerance of the final fit: decision values are right to about as much


@dataclass(frozen=True)
class RbfSvm(RegularizedHead, MemoryHead):
    """Fitted with scikit-learn's `SVC(kernel="rbf")`; stores the support vectors."""

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

    def candidates(self, rows: Rows) -> Candidates:
        return Candidates(CANDIDATES, EXPECTED) if self.c is None else Candidates([self.c])

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
    from itertools import combinations

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
