"""Multinomial logistic regression: the first choice for deep features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit_standard.heads._base import LinearHead, Regularised

if TYPE_CHECKING:
    from tlkit_standard.heads._solve import Method


@dataclass(frozen=True)
class Logistic(Regularised, LinearHead):
    name = "logistic"

    def method(self) -> Method:
        from tlkit_standard.heads._estimators import Logistic as Fit

        return Fit(self.c, self.weights)
