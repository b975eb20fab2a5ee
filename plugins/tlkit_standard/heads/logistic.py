"""Multinomial logistic regression. (Provisional: the author of the heads replaces this file.)"""

from __future__ import annotations

from dataclasses import dataclass

from tlkit.plugin.contract import option
from tlkit_standard.heads._options import SolvedHead


@dataclass(frozen=True)
class Logistic(SolvedHead):
    name = "logistic"
    c: float | None = option(None, "inverse regularisation; found by cross-validation unless given")

    def module(self, width, classes):
        from tlkit_standard.heads._linear import linear

        return linear(width, classes)

    def method(self):
        from tlkit_standard.heads._linear import Logistic as Method

        return Method(self.c, None)


@dataclass(frozen=True)
class Svm(SolvedHead):
    name = "svm"
    c: float | None = option(None, "inverse regularisation; found by cross-validation unless given")

    def module(self, width, classes):
        from tlkit_standard.heads._linear import linear

        return linear(width, classes)

    def method(self):
        from tlkit_standard.heads._linear import Svm as Method

        return Method(self.c, None)
