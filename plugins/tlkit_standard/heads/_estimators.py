"""Logistic regression and the linear SVM, as scikit-learn fits them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tlkit_standard.heads._linear import LinearMethod, both_sides
from tlkit_standard.heads._selection import Path, Scorer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tlkit_standard.heads._selection import Labels, Rows
    from tlkit_standard.heads._solve import Fact

# The grid for C in half decades, times the mean squared distance of the rows from their mean: so one grid suits rows
# of any scale and width.
GRID = tuple(10.0 ** (step / 2) for step in range(-4, 9))


def spread(rows: Rows) -> float:
    """The mean squared distance of the rows from their mean; 1 where there is none."""
    return float(np.sum(rows.var(axis=0))) or 1.0


def fit(model: Any, rows: NDArray[Any], labels: Labels) -> dict[str, Fact]:
    """Fit, and tell how it went instead of warning."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, labels)
    iterations = int(np.max(model.n_iter_))
    return {"c": float(model.C), "iterations": iterations, "converged": iterations < model.max_iter}


def decide(model: Any, rows: NDArray[Any]) -> Rows:
    """The scores `(n, classes)` of a fitted model."""
    values = np.asarray(model.decision_function(rows), np.float64)
    return both_sides(values[None]).T if values.ndim == 1 else values


@dataclass(frozen=True)
class Estimator(LinearMethod):
    """A linear estimator with a parameter C."""

    expected: ClassVar[float]  # the C of the grid that suits most features

    c: float | None
    class_weight: str | None

    def path(self, rows: Rows) -> Path:
        if self.c is not None:
            return Path([self.c])
        return Path([c / spread(rows) for c in GRID], GRID.index(self.expected))


class Logistic(Estimator):
    """Logistic regression, multinomial where there are more than two classes.

    Solved on rows moved to mean 0 and scaled to mean squared norm 1. As the intercept carries no penalty and C is
    scaled along, that is the same problem, in which one tolerance suits rows of any scale.
    """

    expected = 10.0

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        centre, scale = rows.mean(axis=0), spread(rows) ** 0.5
        # Single precision and a loose tolerance: decision values are right to about 0.05, the log-loss to 0.001.
        rows, held = (((part - centre) / scale).astype(np.float32) for part in (rows, held))
        model = self._model(tol=3e-5, max_iter=300)

        def score(c: float) -> Rows:
            fit(model.set_params(C=c * scale**2), rows, labels)
            return decide(model, held)

        return score

    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, dict[str, Fact]]:
        centre, scale = rows.mean(axis=0), spread(rows) ** 0.5
        rows, c = (rows - centre) / scale, choice * scale**2
        model = self._model(C=c, max_iter=5000)
        # Most of the way in single precision, for half the time; then until decision values are right to some 0.0001.
        # The weaker the penalty, the flatter the bottom, and the smaller the gradient has to be for that.
        fit(model.set_params(tol=3e-5), rows.astype(np.float32), labels)
        facts = fit(model.set_params(tol=1e-6 / max(c, 5.0)), rows, labels)
        weight, bias = both_sides(model.coef_) / scale, both_sides(model.intercept_)
        return weight, bias - weight @ centre, facts | {"c": choice}

    def _model(self, **options: Any) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(class_weight=self.class_weight, warm_start=True, **options)


class Svm(Estimator):
    """Linear support vector machines with squared hinge loss, one against the rest (LIBLINEAR: Fan et al. 2008)."""

    expected = 1.0

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        def score(c: float) -> Rows:
            # The primal solver, as folds run side by side: all threads share the random numbers of the dual one, which
            # would make every run another.
            model = self._model(C=c, tol=1e-2, max_iter=1000, dual=False)
            fit(model, rows, labels)
            return decide(model, held)

        return score

    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, dict[str, Fact]]:
        # To the same precision the dual solver is several times faster, where it gets there at all.
        model = self._model(C=choice, tol=1e-5, max_iter=2000, dual=True)
        facts = fit(model, rows, labels)
        if not facts["converged"]:
            facts = fit(model.set_params(tol=1e-7, dual=False), rows, labels)
        return both_sides(model.coef_), both_sides(model.intercept_), facts

    def _model(self, **options: Any) -> Any:
        from sklearn.svm import LinearSVC

        return LinearSVC(class_weight=self.class_weight, random_state=0, **options)
