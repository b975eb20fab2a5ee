"""The nearest class mean: nothing to tune, works from one image per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit_standard.heads._base import LinearHead

if TYPE_CHECKING:
    from tlkit_standard.heads._solve import Method


@dataclass(frozen=True)
class NearestMean(LinearHead):
    name = "nearest-mean"

    def method(self) -> Method:
        from tlkit_standard.heads._linear import NearestMean as Fit

        return Fit()
