"""The linear methods: whatever they are fitted with, what is kept is one linear layer."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tlkit_standard.heads._solve import Method

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tlkit_standard.heads._affine import Affine
    from tlkit_standard.heads._modules import Front
    from tlkit_standard.heads._selection import Scorer
    from tlkit_standard.heads._solve import Fact, Labels, Rows

# The grid for C, in units of 1 / (mean squared distance of a row to the mean row): so it suits rows of any scale,
# dimension and norm. Half decades: the log-loss changes by less than its standard error from one to the next.
GRID = tuple(10.0 ** (step / 2) for step in range(-4, 9))
FALLBACK = 10.0

CV_TOLERANCE, CV_ITERATIONS = 3e-4, 300
TOLERANCE, ITERATIONS = 1e-7, 5000


def linear(width: int, classes: int, front: Front | None = None) -> nn.Module:
    """A linear layer, behind the front where that does anything."""
    layer = nn.Linear(width, classes)
    if front is None or (front.power == 1.0 and not front.l2):
        return layer
    return nn.Sequential(OrderedDict(front=front, linear=layer))


def both_sides(decision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Decision values (first axis: classes) as logits: the one value d of two classes becomes -d/2 and d/2."""
    return np.concatenate([-decision, decision]) / 2.0 if len(decision) == 1 else decision


class LinearMethod(Method):
    """A classifier that is a weight `(classes, out)` and a bias `(classes,)`."""

    rotates = True

    @abstractmethod
    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, dict[str, Fact]]:
        """Weight, bias, and what to record."""

    def module(
        self, front: Front, affine: Affine, rows: Rows, labels: Labels, choice: float, temperature: float
    ) -> tuple[nn.Module, dict[str, Fact]]:
        weight, bias, facts = self.layer(rows, labels, choice)
        weight, bias = affine.under(weight, bias)
        module = linear(weight.shape[1], len(weight), front)
        layer = module if isinstance(module, nn.Linear) else module.linear
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight / temperature))
            layer.bias.copy_(torch.from_numpy(bias / temperature))
        return module, facts


@dataclass(frozen=True)
class Estimator(LinearMethod):
    """A linear estimator of scikit-learn with a parameter C."""

    c: float | None
    class_weight: str | None

    def candidates(self, rows: Rows, labels: Labels) -> Sequence[float]:
        return [self.c] if self.c is not None else [step / _spread(rows) for step in GRID]

    def fallback(self, rows: Rows, labels: Labels) -> float:
        return FALLBACK / _spread(rows)


class Logistic(Estimator):
    """Multinomial logistic regression; binary where there are two classes."""

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        centre = rows.mean(axis=0)
        rows, held = ((part - centre).astype(np.float32) for part in (rows, held))
        model = self._model(tol=CV_TOLERANCE, max_iter=CV_ITERATIONS, warm_start=True)

        def score(c: float) -> Rows:
            _fit(model.set_params(C=c), rows, labels)
            return _logits(model, held)

        return score

    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, dict[str, Fact]]:
        # The intercept carries no penalty, so centring changes nothing but the number of iterations.
        centre = rows.mean(axis=0)
        model = self._model(C=choice, tol=TOLERANCE, max_iter=ITERATIONS)
        facts = _fit(model, rows - centre, labels)
        weight, bias = both_sides(model.coef_), both_sides(model.intercept_)
        return weight, bias - weight @ centre, facts

    def _model(self, **options: Any) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(class_weight=self.class_weight, **options)


class Svm(Estimator):
    """Linear support vector machines, one against the rest, squared hinge loss (LIBLINEAR: Fan et al. 2008)."""

    seed: int = 0

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        def score(c: float) -> Rows:
            model = self._model(C=c, tol=1e-2, max_iter=CV_ITERATIONS)
            _fit(model, rows, labels)
            return _logits(model, held)

        return score

    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, dict[str, Fact]]:
        model = self._model(C=choice, tol=1e-6, max_iter=ITERATIONS)
        facts = _fit(model, rows, labels)
        return both_sides(model.coef_), both_sides(model.intercept_), facts

    def _model(self, **options: Any) -> Any:
        from sklearn.svm import LinearSVC

        return LinearSVC(class_weight=self.class_weight, random_state=0, dual=True, **options)


class NearestMean(LinearMethod):
    """The nearest class mean: of -|x - m|^2 / 2 what differs between classes, x.m - |m|^2 / 2, is linear in x."""

    def candidates(self, rows: Rows, labels: Labels) -> Sequence[float]:
        return [0.0]

    def fallback(self, rows: Rows, labels: Labels) -> float:
        return 0.0

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        weight, bias, _ = self.layer(rows, labels, 0.0)
        return lambda _choice: held @ weight.T + bias

    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, dict[str, Fact]]:
        means = np.stack([rows[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
        bias = -0.5 * np.sum(means**2, axis=1)
        # What all classes have in common changes no probability, and would cost digits in half precision.
        return means - means.mean(axis=0), bias - bias.mean(), {}


def _fit(model: Any, rows: NDArray[Any], labels: Labels) -> dict[str, Fact]:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, labels)
    iterations = int(np.max(model.n_iter_))
    return {"c": float(model.C), "iterations": iterations, "converged": str(iterations < model.max_iter).lower()}


def _logits(model: Any, rows: NDArray[Any]) -> Rows:
    decision = model.decision_function(rows).astype(np.float64)
    return both_sides(decision[None]).T if decision.ndim == 1 else decision


def _spread(rows: Rows) -> float:
    return float(np.sum(rows.var(axis=0))) or 1.0
