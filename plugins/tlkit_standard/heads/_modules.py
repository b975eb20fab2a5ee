"""Modules that heads are stored, trained and exported as: core ONNX operators only.

What is fitted is a tensor in the state dict; what is an option of the component (`power`, `l2`, `metric`, ...) is an
argument. Sizes are taken from the tensors, so a component and a state dict are enough to rebuild a module.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlkit.plugin.support import ArtifactError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tlkit_standard.heads._base import Rows

Tensors = Mapping[str, Tensor]

# Below these, |x| and a row's norm count as zero. Deep features end in a ReLU, so exact zeros are common; there the
# power's gradient would be infinite and the norm's quotient undefined. Both numbers exist in half precision.
SMALLEST_VALUE = 1e-7
SMALLEST_NORM = 1e-4
SMALLEST_DISTANCE = 1e-6

# Votes added to those of the neighbors and shared by all classes: the logarithm of an empty share is infinite.
PRIOR_VOTES = 1.0


@dataclass(frozen=True)
class Affine:
    """Affine map from rows `(n, width)` to rows `(n, out)`, all float64.

    `weight` is `(out, width)`, or `(width,)` if each feature is only scaled; `bias` is `(out,)`. A chain of affine maps
    is an affine map, so a head has at most one, and a linear layer behind it absorbs even that (`under`).
    """

    weight: Rows
    bias: Rows

    def __call__(self, rows: Rows) -> Rows:
        image = rows * self.weight if self.weight.ndim == 1 else rows @ self.weight.T
        image += self.bias
        return image

    def under(self, weight: Rows, bias: Rows) -> tuple[Rows, Rows]:
        """Return the linear layer `weight` `(k, out)`, `bias` `(k,)` on top of this map as one layer `(k, width)`."""
        folded = weight * self.weight if self.weight.ndim == 1 else weight @ self.weight
        return folded, bias + weight @ self.bias

    def then(self, weight: Rows) -> Affine:
        """Return this map followed by the linear map `weight` `(k, out)`."""
        return Affine(*self.under(weight, np.zeros(len(weight))))

    def plus(self, offset: Rows) -> Affine:
        """Return this map followed by adding `offset` `(out,)`."""
        return Affine(self.weight, self.bias + offset)

    def times(self, factor: float) -> Affine:
        """Return this map followed by multiplying with `factor`."""
        return Affine(self.weight * factor, self.bias * factor)

    def module(self) -> Map:
        """Return the map as a float32 module."""
        return Map(to_tensor(self.weight), to_tensor(self.bias))


class Map(nn.Module):
    """Affine map: `weight` `(out, width)`, or `(width,)` to scale each feature; `bias` `(out,)`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, rows: Tensor) -> Tensor:
        if self.weight.ndim == 1:
            return rows * self.weight + self.bias
        return F.linear(rows, self.weight, self.bias)


class Front(nn.Module):
    """Feature transform in front of a classifier: power, L2 norm, one affine map. `(N, width) -> (N, out)`.

    The signed power sign(x)|x|^p and the L2 norm after it are those of Perronnin, Sánchez & Mensink, "Improving the
    Fisher Kernel for Large-Scale Image Classification", ECCV 2010, sections 3.1 and 3.2.
    """

    power: Tensor  # (), stored even if it is 1, so that its loss is noticed

    def __init__(self, power: float, l2: bool, affine: Map | None = None) -> None:
        super().__init__()
        self.register_buffer("power", torch.tensor(power))
        self.raises = power != 1.0
        self.l2 = l2
        self.affine = affine

    @property
    def acts(self) -> bool:
        """True if it changes features."""
        return self.raises or self.l2 or self.affine is not None

    def forward(self, features: Tensor) -> Tensor:
        if self.raises:
            features = torch.sign(features) * torch.clamp(torch.abs(features), min=SMALLEST_VALUE) ** self.power
        if self.l2:
            features = F.normalize(features, dim=1, eps=SMALLEST_NORM)
        return features if self.affine is None else self.affine(features)


class KernelMachine(nn.Module):
    """A support vector machine with RBF kernel, scored as scikit-learn's `SVC(decision_function_shape="ovr")` does.

    `front` ends with a multiplication by the square root of gamma, so the kernel is exp(-|x - s|^2).
    """

    support: Tensor  # (vectors, out), the support vectors behind `front`
    offsets: Tensor  # (vectors,), -|s|^2
    coefficients: Tensor  # (pairs, vectors), the dual coefficients of each pair of classes
    intercepts: Tensor  # (pairs,)
    sides: Tensor  # (classes, pairs), 1 if a positive decision is for the class, -1 if against it, else 0
    scale: Tensor  # (), 1 / temperature

    def __init__(self, front: Front, tensors: Tensors) -> None:
        super().__init__()
        self.front = front
        for name in ("support", "offsets", "coefficients", "intercepts", "sides", "scale"):
            self.register_buffer(name, tensors[name])

    def forward(self, features: Tensor) -> Tensor:
        rows = self.front(features)
        exponent = F.linear(rows, 2.0 * self.support, self.offsets) - torch.sum(rows * rows, dim=1, keepdim=True)
        kernel = torch.exp(torch.clamp(exponent, max=0.0))  # above 0 only by rounding
        return self.scale * self.scores(F.linear(kernel, self.coefficients, self.intercepts))

    def scores(self, decisions: Tensor) -> Tensor:
        """Return scores `(N, classes)` from the decisions of all pairs `(N, pairs)`; two classes get -d/2 and d/2.

        Every pair casts a vote; the sum of a class's confidences, squashed below half a vote, breaks ties
        (`sklearn.utils.multiclass._ovr_decision_function`).
        """
        confidence = F.linear(decisions, self.sides)
        classes = len(self.sides)
        if classes == 2:
            return confidence / 2.0
        ballots = torch.where(decisions < 0.0, -torch.ones_like(decisions), torch.ones_like(decisions))
        votes = (F.linear(ballots, self.sides) + (classes - 1)) / 2.0
        return votes + confidence / (3.0 * (torch.abs(confidence) + 1.0))


class Neighbors(nn.Module):
    """The k nearest training rows vote; logits are the logarithms of the shares. One matrix product and a TopK."""

    rows: Tensor  # (n, out), the training rows behind `front`, of norm 1 if the metric is cosine
    offsets: Tensor  # (n,), -|row|^2 / 2, or 0 if the metric is cosine
    votes: Tensor  # (n, classes), one-hot labels
    neighbors: Tensor  # (), int64, k
    scale: Tensor  # (), 1 / temperature

    def __init__(self, front: Front, tensors: Tensors, *, cosine: bool, by_distance: bool) -> None:
        super().__init__()
        self.front = front
        self.cosine = cosine
        self.by_distance = by_distance
        for name in ("rows", "offsets", "votes", "neighbors", "scale"):
            self.register_buffer(name, tensors[name])
        self.k = int(self.neighbors)  # a constant of the graph: TopK by a computed k would be a dynamic shape

    def forward(self, features: Tensor) -> Tensor:
        rows = self.embed(features)
        return self.scale * self.log_shares(rows, self.nearest(rows))

    def embed(self, features: Tensor) -> Tensor:
        """Return features `(N, width)` as rows `(N, out)` to compare."""
        rows: Tensor = self.front(features)
        return F.normalize(rows, dim=1, eps=SMALLEST_NORM) if self.cosine else rows

    def nearest(self, rows: Tensor) -> Tensor:
        """Return the indices `(N, k)` of the nearest training rows, nearest first.

        |x - r|^2 / 2 differs from -(x.r - |r|^2 / 2) by a constant of x, so the latter ranks as well.
        """
        return torch.topk(F.linear(rows, self.rows, self.offsets), self.k, dim=1).indices

    def log_shares(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return the logarithms `(N, classes)` of the shares in the votes of the neighbors `index` `(N, k)`."""
        votes = F.embedding(index, self.votes)
        if self.by_distance:
            weights = self.weights(rows, index)
            votes = votes * (weights / weights.mean(dim=1, keepdim=True)).unsqueeze(2)
        k, classes = index.shape[1], votes.shape[2]
        return torch.log((votes.sum(dim=1) + PRIOR_VOTES / classes) / (k + PRIOR_VOTES))

    def weights(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return 1 / distance `(N, k)` up to a factor per row; a neighbor at distance 0 outvotes all others.

        The distances are taken from differences: the expansion that ranks rounds 0 to something else.
        """
        squares = torch.sum((rows.unsqueeze(1) - F.embedding(index, self.rows)) ** 2, dim=2)
        distances = squares / 2.0 if self.cosine else torch.sqrt(squares)
        return (distances.amin(dim=1, keepdim=True) + SMALLEST_DISTANCE) / (distances + SMALLEST_DISTANCE)


class Standardize(nn.BatchNorm1d):
    """Batch normalization without scale and shift: standardizing for features of a trainable trunk.

    As in the linear probes of He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, A.1.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False)

    def forward(self, rows: Tensor) -> Tensor:
        if self.training and len(rows) == 1:  # the last batch of an epoch: one row has no variance
            return F.batch_norm(rows, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(rows)


def linear(width: int, classes: int, front: Front) -> nn.Module:
    """Return a linear layer, behind the front if that acts."""
    layer = nn.Linear(width, classes)
    return nn.Sequential(OrderedDict(front=front, linear=layer)) if front.acts else layer


def fitted_linear(weight: Rows, bias: Rows, front: Front) -> nn.Module:
    """Return a linear layer with `weight` `(classes, width)` and `bias` `(classes,)`, behind the front if that acts."""
    module = linear(weight.shape[1], len(weight), front)
    layer = module.get_submodule("linear" if front.acts else "")
    layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    return module


def untrained_front(width: int, power: float | None, l2: bool) -> Front:
    """Return the front of a head that is trained by gradient; `power` None is 1.

    The L2 norm becomes the square root of `width` instead of 1, a mean square of 1 per feature. At norm 1, AdamW with a
    learning rate of 0.001 is far from converged after 60 epochs: 44 % against 81 % on 200 images of ten hand signs.
    """
    scale = Map(torch.full((width,), width**0.5), torch.zeros(width)) if l2 else None
    return Front(power or 1.0, l2, scale)


def rebuild(
    build: Callable[[Front, Tensors], nn.Module], tensors: Tensors, width: int, classes: int, *, l2: bool
) -> nn.Module:
    """Return the module that `build` makes of the front and the tensors of a state dict, in eval mode.

    Raises ArtifactError for tensors that are missing, left over, or not those of a head from `width` to `classes`.
    """
    try:
        affine = None
        if "front.affine.weight" in tensors:
            affine = Map(tensors["front.affine.weight"], tensors["front.affine.bias"])
        front = Front(float(tensors.get("front.power", 1.0)), l2, affine)
        module = build(front, tensors).eval()
        module.load_state_dict(tensors)
        with torch.inference_mode():
            logits = module(torch.zeros(1, width))
    except (KeyError, IndexError, RuntimeError, ValueError) as problem:
        raise ArtifactError(f"the head's tensors do not fit together: {problem}") from problem
    if logits.shape != (1, classes):
        raise ArtifactError(f"the head's tensors are for {logits.shape[1]} classes, not {classes}")
    return module


def pair_signs(classes: int) -> Rows:
    """Return the sign `(classes, pairs)` of each pair's decision for each class: 1 for, -1 against, 0 neither.

    A positive decision is for the first of the pair; but if there are just two classes, for the second.
    """
    pairs = list(combinations(range(classes), 2))
    signs = np.zeros((classes, len(pairs)))
    for pair, (first, second) in enumerate(pairs):
        signs[first, pair], signs[second, pair] = (1.0, -1.0) if classes > 2 else (-1.0, 1.0)
    return signs


def to_tensor(array: NDArray[np.float64]) -> Tensor:
    """Return an array as a contiguous float32 tensor, in the order in which it is stored."""
    return torch.from_numpy(array.astype(np.float32, order="C"))
