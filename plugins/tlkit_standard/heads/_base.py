"""What the standard heads share: their common options, and the way from a component to its module."""

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
    from torch import nn

    from tlkit_standard.heads._modules import Front, Tensors
    from tlkit_standard.heads._solve import Method


@dataclass(frozen=True)
class FrontHead(Head):
    """A head that begins by evening out the features (see `_modules.Front`).

    The defaults, power and L2 norm without standardising, had the lowest mean log-loss over ants/bees, digits, CIFAR-10
    and Fashion-MNIST (200 to 500 images, EfficientNet-Lite0) or missed it by 0.002, with every solved head but one:
    nearest-mean on features of both signs gains a point of accuracy from standardising. Elsewhere that costs up to 5
    points where images are few, as it magnifies features that hardly vary.
    """

    power: float | None = option(None, "signed power of every feature, 1 for none; none: 0.5 if no feature is negative")
    l2: bool = option(True, "scale the features of every image to norm 1")
    standardise: bool = option(False, "scale every feature to mean 0 and variance 1 over the training images")

    def __post_init__(self) -> None:
        if problems := list(self.problems()):
            raise UsageError("; ".join(problems))

    def problems(self) -> Iterator[str]:
        """What is wrong with the options."""
        for field in option_fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices and value not in choices:
                yield f"{field.name} must be one of {', '.join(choices)}, not {value!r}"
        if self.power is not None and self.power <= 0.0:
            yield f"power must be above 0, not {self.power}"

    @abstractmethod
    def build(self, front: Front, tensors: Tensors) -> nn.Module:
        """The module of a state dict, its sizes taken from there. Raises KeyError for a tensor that is missing."""

    def restore(self, width: int, classes: int, tensors: Mapping[str, Any]) -> nn.Module:
        from tlkit_standard.heads._modules import rebuild

        return rebuild(self.build, tensors, width, classes, l2=self.l2)


@dataclass(frozen=True)
class SolvedHead(FrontHead):
    """A head that is fitted with scikit-learn and stored as tensors."""

    pca: int = option(0, "principal components to keep, at most as many as vary; 0 keeps the features as they are")
    whiten: bool = option(False, "scale every principal component to variance 1; all of them where pca is 0")
    calibrate: bool = option(True, "fit a temperature to held-out images, so that probabilities mean what they say")

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
    """A head that is one linear layer, behind power and L2 norm where these are on.

    Standardising, PCA, whitening and temperature are folded into the layer. Trained by gradient, there are none.
    """

    def module(self, width: int, classes: int) -> nn.Module:
        from tlkit_standard.heads._modules import linear, untrained_front

        return linear(width, classes, untrained_front(width, self.power, self.l2))

    def build(self, front: Front, tensors: Tensors) -> nn.Module:
        from tlkit_standard.heads._modules import linear

        classes, width = tensors["linear.weight" if front.acts else "weight"].shape
        return linear(width, classes, front)


@dataclass(frozen=True)
class MemoryHead(SolvedHead):
    """A head that keeps training images: it can be solved, not trained by gradient."""

    def module(self, width: int, classes: int) -> nn.Module:
        raise UsageError(
            f"the head {self.name!r} is solved and can't be trained by gradient",
            do="take logistic, svm, nearest-mean or mlp, or a strategy that only solves",
        )


@dataclass(frozen=True)
class Regularised(SolvedHead):
    """A head whose regularisation has a strength."""

    c: float | None = option(None, "inverse strength of the regularisation; none finds it by cross-validation")
    class_weight: str = option("none", "balanced: a rare class counts as much as any", choices=("none", "balanced"))

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.c is not None and self.c <= 0.0:
            yield f"c must be above 0, not {self.c}"

    @property
    def weights(self) -> str | None:
        """`class_weight` as scikit-learn spells it."""
        return None if self.class_weight == "none" else self.class_weight
