"""Base classes of the standard heads: their options, and what each kind of head implements.

A head is told in four files: its own (options and how it is fitted), this one, `_solver` (features to a fitted module)
and `_modules` (what is stored and exported).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tlkit.plugin.contract import IMBALANCED, DatasetStatistics, Head, option, option_fields
from tlkit.plugin.support import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from tlkit_standard.heads._modules import Affine, Front, Tensors

    Rows = NDArray[np.float64]
    Labels = NDArray[np.int64]
    Report = dict[str, float | int | bool | str | None]

# From a candidate to the scores `(n, classes)` of a fold's held-out rows. It is called for one candidate after the
# other, so it may start from the previous fit.
Scorer = Callable[[float], "Rows"]


@dataclass(frozen=True)
class Candidates:
    """Candidate values of a hyperparameter, the strongest regularization first; `start` indexes the expected one."""

    values: Sequence[float]
    start: int = 0

    @property
    def expected(self) -> float:
        """Value to take without evidence."""
        return self.values[self.start]


@dataclass(frozen=True)
class FrontHead(Head):
    """Head behind a feature transform (see `_modules.Front`).

    The defaults, power and L2 norm without standardizing, had the lowest mean log loss over ants/bees, digits, CIFAR-10
    and Fashion-MNIST (200 to 500 images, EfficientNet-Lite0) or missed it by 0.002, with every solved head but one:
    nearest-mean on features of both signs gains 1 % accuracy from standardizing. Elsewhere that costs up to 5 % if
    images are few, as it magnifies features that hardly vary.
    """

    power: float | None = option(None, "signed power of every feature, 1: off; none: 0.5 if no feature is negative")
    l2: bool = option(True, "L2-normalize the features of every image")
    standardize: bool = option(False, "scale every feature to mean 0 and variance 1 over the training images")

    def __post_init__(self) -> None:
        if problems := list(self.problems()):
            raise UsageError("; ".join(problems))

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the options."""
        for field in option_fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices and value not in choices:
                yield f"{field.name} must be one of {', '.join(choices)}, not {value!r}"
        if self.power is not None and self.power <= 0.0:
            yield f"power must be above 0, not {self.power}"

    @abstractmethod
    def build(self, front: Front, tensors: Tensors) -> nn.Module:
        """Return the module of a state dict, with the sizes of its tensors. Raises KeyError for a missing tensor."""

    def restore(self, width: int, classes: int, tensors: Mapping[str, Any]) -> nn.Module:
        from tlkit_standard.heads._modules import rebuild

        return rebuild(self.build, tensors, width, classes, l2=self.l2)


@dataclass(frozen=True)
class SolvedHead(FrontHead):
    """Head that is fitted with scikit-learn and stored as tensors.

    The methods get rows `(n, out)`, which are features behind the front and an affine map, and labels 0..classes-1,
    each of them present. Scores `(n, classes)` are the logits at temperature 1.
    """

    rotates: ClassVar[bool] = False  # a rotation of the rows does not change the solution

    pca: int = option(0, "principal components to keep, at most the rank of the features; 0 keeps the features")
    whiten: bool = option(False, "scale every principal component to variance 1; all components if pca is 0")
    calibrate: bool = option(True, "fit a softmax temperature to held-out images")
    max_rows: int = option(0, "training images to fit to, drawn by class; 0: as many as float64 rows fit in 512 MiB")

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.pca < 0:
            yield f"pca must be 0 or more, not {self.pca}"
        if self.max_rows < 0:
            yield f"max_rows must be 0 or more, not {self.max_rows}"

    @abstractmethod
    def grid(self, rows: Rows) -> Candidates:
        """Return the values to choose from by cross-validation."""

    @abstractmethod
    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        """Return the function from a candidate, fitted to `rows`, to the scores of the held-out rows."""

    @abstractmethod
    def fit(
        self, front: Front, affine: Affine, rows: Rows, labels: Labels, choice: float, temperature: float
    ) -> tuple[nn.Module, Report]:
        """Return the module for `choice` fitted to `rows`, the features under `affine`, and its report."""

    def solve(self, features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, seed: int) -> nn.Module:
        from tlkit_standard.heads._solver import solve

        return solve(self, features, labels, classes, seed)

    def solve_grouped(
        self,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        classes: int,
        seed: int,
        groups: NDArray[np.int64],
    ) -> nn.Module:
        from tlkit_standard.heads._solver import solve

        return solve(self, features, labels, classes, seed, groups=groups)


@dataclass(frozen=True)
class LinearHead(SolvedHead):
    """Head that is one linear layer, behind power and L2 norm if these are on.

    Standardizing, PCA, whitening and temperature are folded into the layer; training by gradient uses none of them.
    """

    rotates = True

    @abstractmethod
    def layer(self, rows: Rows, labels: Labels, choice: float) -> tuple[Rows, Rows, Report]:
        """Return weight `(classes, out)` and bias `(classes,)` fitted to `rows`, and the report."""

    def fit(
        self, front: Front, affine: Affine, rows: Rows, labels: Labels, choice: float, temperature: float
    ) -> tuple[nn.Module, Report]:
        from tlkit_standard.heads._modules import fitted_linear

        weight, bias, report = self.layer(rows, labels, choice)
        return fitted_linear(*affine.under(weight / temperature, bias / temperature), front), report

    def module(self, width: int, classes: int) -> nn.Module:
        from tlkit_standard.heads._modules import linear, untrained_front

        return linear(width, classes, untrained_front(width, self.power, self.l2))

    def build(self, front: Front, tensors: Tensors) -> nn.Module:
        from tlkit_standard.heads._modules import linear

        classes, width = tensors["linear.weight" if front.acts else "weight"].shape
        return linear(width, classes, front)


MIN_C, MAX_C = 1e-9, 1e9  # the solvers do not converge, or do not end, far outside


@dataclass(frozen=True)
class RegularizedHead(SolvedHead):
    """Head with a regularization strength."""

    c: float | None = option(None, "inverse regularization strength; none: chosen by cross-validation")
    class_weight: str = option("none", "balanced: weight classes inversely to their size", choices=("none", "balanced"))

    expected_c: ClassVar[float]  # value of the grid that suits most features

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.c is not None and not MIN_C <= self.c <= MAX_C:
            yield f"c must be from {MIN_C:g} to {MAX_C:g}, not {self.c:g}"

    def grid(self, rows: Rows) -> Candidates:
        """Return the grid of C, scaled to the rows, or the value that is given."""
        if self.c is not None:
            return Candidates([self.c])
        from tlkit_standard.heads._solver import C_GRID, spread

        return Candidates([c / spread(rows) for c in C_GRID], C_GRID.index(self.expected_c))

    def candidates(self, info: DatasetStatistics) -> Sequence[Head]:
        if info.largest_class < IMBALANCED * info.smallest_class or self.weights:
            return ()
        return (replace(self, class_weight="balanced"),)

    @property
    def weights(self) -> str | None:
        """`class_weight` as scikit-learn spells it."""
        return None if self.class_weight == "none" else self.class_weight
