"""Heads that are one linear layer: logistic regression, linear support vector machine, nearest class mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlkit_standard.heads._base import Candidates, LinearHead, RegularizedHead, Scorer

if TYPE_CHECKING:
    from tlkit_standard.heads._base import Labels, Report, Rows


@dataclass(frozen=True)
class Logistic(RegularizedHead, LinearHead):
    """Multinomial logistic regression: the first choice for deep features.

    L2 penalty; fitted with scikit-learn.

    Solved on rows moved to mean 0 and scaled to mean squared norm 1. As the intercept carries no penalty and C is
    scaled along, that is the same problem, in which one tolerance suits rows of any scale.
    """

    name = "logistic"
    expected_c = 10.0

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        from tlkit_standard.heads._solver import decision_scores, fit_estimator, spread

        center, scale = rows.mean(axis=0), spread(rows) ** 0.5
        # Single precision and a loose tolerance: decision values are right to about 0.05, the log loss to 0.001.
        rows, held = (((part - center) / scale).astype("float32") for part in (rows, held))
        model = self._model(tol=3e-5, max_iter=300)

        def score(c: float) -> Rows:
            fit_estimator(model.set_params(C=c * scale**2), rows, labels)
            return decision_scores(model, held)

        return score

    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, Report]:
        from tlkit_standard.heads._solver import both_classes, fit_estimator, spread

        center, scale = rows.mean(axis=0), spread(rows) ** 0.5
        rows, c = (rows - center) / scale, choice * scale**2
        model = self._model(C=c, max_iter=5000)
        # Most iterations in single precision, for half the time; then until decision values are right to some 0.0001.
        # The weaker the penalty, the flatter the minimum, and the smaller the gradient has to be for that.
        fit_estimator(model.set_params(tol=3e-5), rows.astype("float32"), labels)
        report = fit_estimator(model.set_params(tol=1e-6 / max(c, 5.0)), rows, labels)
        weight, bias = both_classes(model.coef_) / scale, both_classes(model.intercept_)
        return weight, bias - weight @ center, report | {"c": choice}

    def _model(self, **options: Any) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(class_weight=self.weights, warm_start=True, **options)


@dataclass(frozen=True)
class Svm(RegularizedHead, LinearHead):
    """Linear support vector machines, one against the rest.

    L2 penalty and squared hinge loss (LIBLINEAR: Fan et al., JMLR 2008).
    """

    name = "svm"
    expected_c = 1.0

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        from tlkit_standard.heads._solver import decision_scores, fit_estimator

        def score(c: float) -> Rows:
            # The primal solver, as folds run side by side: all threads share the random numbers of the dual one, which
            # would make every run another.
            model = self._model(C=c, tol=1e-2, max_iter=1000, dual=False)
            fit_estimator(model, rows, labels)
            return decision_scores(model, held)

        return score

    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, Report]:
        from tlkit_standard.heads._solver import both_classes, fit_estimator

        # To the same precision the dual solver is several times faster, if it converges at all.
        model = self._model(C=choice, tol=1e-5, max_iter=2000, dual=True)
        report = fit_estimator(model, rows, labels)
        if not report["converged"]:
            report = fit_estimator(model.set_params(tol=1e-7, dual=False), rows, labels)
        return both_classes(model.coef_), both_classes(model.intercept_), report

    def _model(self, **options: Any) -> Any:
        from sklearn.svm import LinearSVC

        return LinearSVC(class_weight=self.weights, random_state=0, **options)


@dataclass(frozen=True)
class NearestMean(LinearHead):
    """The nearest class mean: no hyperparameters, works from one image per class.

    Linear, as the part of -|x - m|^2 / 2 that differs between classes is x.m - |m|^2 / 2.
    """

    name = "nearest-mean"

    def grid(self, rows: Rows) -> Candidates:
        return Candidates([0.0])  # nothing to choose

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        weight, bias, _ = self.layer(rows, labels, 0.0)
        return lambda _choice: held @ weight.T + bias

    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, Report]:
        import numpy as np

        means = np.stack([rows[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
        offsets = -0.5 * np.sum(means**2, axis=1)
        # What all classes have in common changes no probability, but would cost digits in half precision.
        return means - means.mean(axis=0), offsets - offsets.mean(), {}
