"""Linear support vector machines, one against the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit_standard.heads._base import LinearHead, Regularised

if TYPE_CHECKING:
    from tlkit_standard.heads._solve import Method


@dataclass(frozen=True)
class Svm(Regularised, LinearHead):
    name = "svm"

    def method(self) -> Method:
        from tlkit_standard.heads._estimators import Svm as Fit

        return Fit(self.c, self.weights)
