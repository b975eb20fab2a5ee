"""A support vector machine with a radial basis function kernel: for classes that no plane parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit.plugin.contract import option
from tlkit_standard.heads._base import MemoryHead, Regularised

if TYPE_CHECKING:
    from torch import nn

    from tlkit_standard.heads._modules import Front, Tensors
    from tlkit_standard.heads._solve import Method


@dataclass(frozen=True)
class RbfSvm(Regularised, MemoryHead):
    name = "rbf-svm"
    gamma: float | str = option("scale", 'width of the kernel; "scale" is 1 / (features x their variance)')

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if isinstance(self.gamma, str) and self.gamma != "scale":
            yield f'gamma must be "scale" or a number, not {self.gamma!r}'
        elif not isinstance(self.gamma, str) and self.gamma <= 0.0:
            yield f"gamma must be above 0, not {self.gamma}"

    def method(self) -> Method:
        from tlkit_standard.heads._kernel import Rbf

        return Rbf(self.c, self.weights, None if isinstance(self.gamma, str) else self.gamma)

    def build(self, front: Front, tensors: Tensors) -> nn.Module:
        from tlkit_standard.heads._modules import KernelMachine

        return KernelMachine(front, tensors)
