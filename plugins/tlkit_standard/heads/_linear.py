"""Linear methods: whatever fits them, what is kept is one linear layer."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch

from tlkit_standard.heads._modules import Front, linear
from tlkit_standard.heads._selection import Path, Scorer
from tlkit_standard.heads._solve import Fact, Method

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from tlkit_standard.heads._affine import Affine
    from tlkit_standard.heads._selection import Labels, Rows


def both_sides(decision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits `(classes, ...)` of scikit-learn's decision values: the only one of two classes, d, becomes -d/2, d/2.

    Their softmax is the sigmoid of d.
    """
    return np.concatenate([-decision, decision]) / 2.0 if len(decision) == 1 else decision


class LinearMethod(Method):
    """A classifier that is a weight `(classes, out)` and a bias `(classes,)`."""

    rotates = True

    @abstractmethod
    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, dict[str, Fact]]:
        """Weight and bias fitted to `rows`, and what to record."""

    def module(
        self, front: Front, affine: Affine, rows: Rows, labels: Labels, choice: float, temperature: float
    ) -> tuple[nn.Module, dict[str, Fact]]:
        weight, bias, facts = self.layer(rows, labels, choice)
        weight, bias = affine.under(weight / temperature, bias / temperature)
        module = linear(weight.shape[1], len(weight), front)
        layer = module.get_submodule("linear" if front.acts else "")
        layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        return module, facts


class NearestMean(LinearMethod):
    """The nearest class mean: the part of -|x - m|^2 / 2 that differs between classes is x.m - |m|^2 / 2."""

    def path(self, rows: Rows) -> Path:
        return Path([0.0])  # nothing to choose

    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        weight, bias, _ = self.layer(rows, labels, 0.0)
        return lambda _choice: held @ weight.T + bias

    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, dict[str, Fact]]:
        means = np.stack([rows[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
        offsets = -0.5 * np.sum(means**2, axis=1)
        # What all classes have in common changes no probability, but would cost digits in half precision.
        return means - means.mean(axis=0), offsets - offsets.mean(), {}
