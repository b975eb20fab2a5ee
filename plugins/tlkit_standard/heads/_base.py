"""What the standard heads share: their common options, and the way from an offer to its module."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlkit.errors import UsageError
from tlkit.plugin.contract import Head, option, option_fields

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tlkit_standard.heads._modules import Front
    from tlkit_standard.heads._solve import Method


@dataclass(frozen=True)
class FrontHead(Head):
    """A head that begins by compressing and normalising the features (see `_modules.Front`).

    The defaults are the recipe of Perronnin et al. 2010: on features of EfficientNet-Lite0, square root and L2 norm
    without standardising gave logistic regression the lowest log-loss on ants/bees, digits, CIFAR-10 and
    Fashion-MNIST at 200 to 6,000 images, and never cost accuracy. They also make every head indifferent to the scale
    of the features, and keep the norm's sum of squares within the range of half precision.
    """

    power: float = option(0.5, "signed power sign(x)|x|^power of every feature; 1 leaves it as it is")
    l2: bool = option(True, "scale the features of every image to norm 1")
    standardise: bool = option(False, "scale every feature to mean 0 and variance 1 over the training images")

    def __post_init__(self) -> None:
        if problems := list(self.problems()):
            raise UsageError("; ".join(problems))

    def problems(self) -> Iterator[str]:
        """What is wrong with the options."""
        for field in option_fields(self):
            choices = field.metadata["choices"]
            if choices and getattr(self, field.name) not in choices:
                yield f"{field.name} must be one of {', '.join(map(str, choices))}, not {getattr(self, field.name)!r}"
        if self.power <= 0.0:
            yield f"power must be above 0, not {self.power}"

    def front(self) -> Front | None:
        """The part of the module without fitted tensors; None where it does nothing."""
        from tlkit_standard.heads._modules import Front

        return Front(self.power, self.l2) if self.power != 1.0 or self.l2 else None


@dataclass(frozen=True)
class SolvedHead(FrontHead):
    """A head that is fitted with scikit-learn and stored as tensors."""

    pca: int = option(0, "principal components to keep, or all where there are fewer; 0 keeps the features as they are")
    whiten: bool = option(False, "scale every principal component to variance 1 (all of them where pca is 0)")
    calibrate: bool = option(True, "fit a temperature to the held-out scores, so that probabilities mean what they say")

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.pca < 0:
            yield f"pca must be 0 or more, not {self.pca}"

    @abstractmethod
    def method(self) -> Method:
        """How it is fitted."""

    def solve(self, features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, seed: int) -> nn.Module:
        from tlkit_standard.heads._solve import solve

        return solve(self, self.method(), features, labels, classes, seed)


@dataclass(frozen=True)
class LinearHead(SolvedHead):
    """A head that is one linear layer, behind the front where that does anything.

    Standardisation, PCA, whitening and temperature are folded into the layer.
    """

    def module(self, width: int, classes: int) -> nn.Module:
        from tlkit_standard.heads._linear import linear

        return linear(width, classes, self.front())


@dataclass(frozen=True)
class MemoryHead(SolvedHead):
    """A head that keeps training rows: it can be solved, not trained by gradient."""

    def module(self, width: int, classes: int) -> nn.Module:
        raise UsageError(
            f"the head {self.name!r} can't be trained by gradient",
            do="take logistic, svm, nearest-mean or mlp, or a strategy that leaves the trunk as it is",
        )

    @abstractmethod
    def build(self, front: Front, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The module around the tensors of a state dict. Raises KeyError where one is missing."""

    def restore(self, width: int, classes: int, tensors: Mapping[str, Any]) -> nn.Module:
        from tlkit_standard.heads._modules import Front, rebuild

        return rebuild(self.build, Front(self.power, self.l2), tensors, width, classes)


@dataclass(frozen=True)
class Regularised(SolvedHead):
    """A head whose regularisation has a strength."""

    c: float | None = option(None, "inverse strength of the regularisation; none finds it by cross-validation")
    class_weight: str = option(
        "none", "balanced: rare classes count as much as frequent ones", choices=("none", "balanced")
    )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.c is not None and self.c <= 0.0:
            yield f"c must be above 0, not {self.c}"

    @property
    def weights(self) -> str | None:
        """`class_weight` as scikit-learn spells it."""
        return None if self.class_weight == "none" else self.class_weight
