"""Linear support vector machines, one against the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlkit_standard.heads._base import LinearHead, RegularizedHead, Scorer

if TYPE_CHECKING:
    from tlkit_standard.heads._base import Labels, Report, Rows


@dataclass(frozen=True)
class Svm(RegularizedHead, LinearHead):
    """L2 penalty and squared hinge loss (LIBLINEAR: Fan et al., JMLR 2008)."""

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
