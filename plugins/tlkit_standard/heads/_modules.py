"""The modules that heads are stored, trained and exported as: standard operators only.

What is fitted is a tensor in the state dict; what is an option of the offer (`power`, `l2`, `metric`, ...) is an
argument. Shapes are taken from the tensors, so an offer and a state dict are enough to rebuild a module.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlkit.errors import ArtefactError

# Where |x| and a row's norm begin to count as zero. Deep features end in a ReLU, so exact zeros are common; there the
# power's gradient would be infinite and the norm's quotient undefined. Both numbers exist in half precision.
SMALLEST_VALUE = 1e-7
SMALLEST_NORM = 1e-4
SMALLEST_DISTANCE = 1e-6

# Votes that are cast before any neighbour's, shared by all classes: the logarithm of an empty share is infinite.
PRIOR_VOTES = 1.0


class Front(nn.Module):
    """What a head does to features before it classifies: power, L2 norm, one affine map. `(N, width) -> (N, out)`.

    The signed power sign(x)|x|^p and the L2 norm after it are those of Perronnin, Sánchez & Mensink, "Improving the
    Fisher Kernel for Large-Scale Image Classification", ECCV 2010, sections 3.1 and 3.2.
    """

    def __init__(self, power: float, l2: bool, affine: nn.Module | None = None) -> None:
        super().__init__()
        self.power = power
        self.l2 = l2
        self.affine = affine

    @property
    def acts(self) -> bool:
        """Whether it does anything that a linear layer behind it can't."""
        return self.power != 1.0 or self.l2

    def forward(self, features: Tensor) -> Tensor:
        if self.power != 1.0:
            features = torch.sign(features) * torch.clamp(torch.abs(features), min=SMALLEST_VALUE) ** self.power
        if self.l2:
            features = F.normalize(features, dim=1, eps=SMALLEST_NORM)
        return features if self.affine is None else self.affine(features)


class Map(nn.Module):
    """An affine map: `weight` `(out, width)`, or `(width,)` to scale feature by feature; `bias` `(out,)`."""

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


class KernelMachine(nn.Module):
    """A support vector machine with RBF kernel, scored as scikit-learn's `SVC(decision_function_shape="ovr")` does.

    `front` ends with a multiplication by the square root of gamma, so the kernel is exp(-|x - s|^2).
    """

    support: Tensor  # (vectors, out), the support vectors behind `front`
    offsets: Tensor  # (vectors,), -|s|^2
    coefficients: Tensor  # (pairs, vectors), the dual coefficients of each pair of classes
    intercepts: Tensor  # (pairs,)
    sides: Tensor  # (classes, pairs), 1 where a positive decision speaks for the class, -1 where against, else 0
    scale: Tensor  # (), 1 / temperature

    def __init__(self, front: Front, tensors: Mapping[str, Tensor]) -> None:
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
        """Scores `(N, classes)` from the decisions of all pairs `(N, pairs)`; two classes get -d/2 and d/2.

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


class Neighbours(nn.Module):
    """The k nearest training rows vote; logits are the logarithms of the shares. One matrix product and a TopK."""

    rows: Tensor  # (n, out), the training rows behind `front`, of norm 1 where the metric is cosine
    offsets: Tensor  # (n,), -|row|^2 / 2, or 0 where the metric is cosine
    votes: Tensor  # (n, classes), one-hot labels
    neighbours: Tensor  # (), int64, k
    scale: Tensor  # (), 1 / temperature

    def __init__(self, front: Front, tensors: Mapping[str, Tensor], *, cosine: bool, by_distance: bool) -> None:
        super().__init__()
        self.front = front
        self.cosine = cosine
        self.by_distance = by_distance
        for name in ("rows", "offsets", "votes", "neighbours", "scale"):
            self.register_buffer(name, tensors[name])
        self.k = int(self.neighbours)  # a constant of the graph: TopK by a computed k would be a dynamic shape

    def forward(self, features: Tensor) -> Tensor:
        rows = self.embed(features)
        return self.scale * self.log_shares(rows, self.nearest(rows))

    def embed(self, features: Tensor) -> Tensor:
        """Features `(N, width)` as rows `(N, out)` to compare."""
        rows: Tensor = self.front(features)
        return F.normalize(rows, dim=1, eps=SMALLEST_NORM) if self.cosine else rows

    def nearest(self, rows: Tensor) -> Tensor:
        """The indices `(N, k)` of the nearest training rows, nearest first.

        |x - r|^2 / 2 differs from -(x.r - |r|^2 / 2) by a constant of x, so the latter ranks as well.
        """
        return torch.topk(F.linear(rows, self.rows, self.offsets), self.k, dim=1).indices

    def log_shares(self, rows: Tensor, index: Tensor) -> Tensor:
        """The logarithms `(N, classes)` of the shares in the votes of the neighbours `index` `(N, k)`."""
        votes = F.embedding(index, self.votes)
        if self.by_distance:
            weights = self.weights(rows, index)
            votes = votes * (weights / weights.mean(dim=1, keepdim=True)).unsqueeze(2)
        k, classes = index.shape[1], votes.shape[2]
        return torch.log((votes.sum(dim=1) + PRIOR_VOTES / classes) / (k + PRIOR_VOTES))

    def weights(self, rows: Tensor, index: Tensor) -> Tensor:
        """1 / distance `(N, k)` up to a factor per row; a neighbour at distance 0 outvotes all others.

        The distances are taken from differences: the expansion that ranks rounds 0 to something else.
        """
        squares = torch.sum((rows.unsqueeze(1) - F.embedding(index, self.rows)) ** 2, dim=2)
        distances = squares / 2.0 if self.cosine else torch.sqrt(squares)
        return (distances.amin(dim=1, keepdim=True) + SMALLEST_DISTANCE) / (distances + SMALLEST_DISTANCE)


class Standardise(nn.BatchNorm1d):
    """Batch normalisation without scale and shift: what standardising is where the features keep moving.

    As before the linear probes of He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, A.1.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False)

    def forward(self, rows: Tensor) -> Tensor:
        if self.training and len(rows) == 1:  # the last batch of an epoch may have one row: no variance to learn from
            return F.batch_norm(rows, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(rows)


def mlp(
    front: Front | None, width: int, hidden: int, classes: int, *, standardise: bool, dropout: float
) -> nn.Sequential:
    """An untrained perceptron with one hidden layer."""
    layers: dict[str, nn.Module] = {} if front is None else {"front": front}
    if standardise:
        layers["standardise"] = Standardise(width)
    layers |= {
        "hidden": nn.Linear(width, hidden),
        "relu": nn.ReLU(),
        "dropout": nn.Dropout(dropout),
        "linear": nn.Linear(hidden, classes),
    }
    return nn.Sequential(OrderedDict(layers))


def rebuild(
    build: Callable[[Front, Mapping[str, Tensor]], nn.Module],
    front: Front,
    tensors: Mapping[str, Tensor],
    width: int,
    classes: int,
) -> nn.Module:
    """The module that `build` makes around the tensors of a state dict, in eval mode.

    Raises ArtefactError where tensors are missing, left over, or not those of a head from `width` to `classes`.
    """
    if "front.affine.weight" in tensors:
        front.affine = Map(tensors["front.affine.weight"], tensors["front.affine.bias"])
    try:
        module = build(front, tensors).eval()
        module.load_state_dict(tensors)
        with torch.inference_mode():
            shape = tuple(module(torch.zeros(1, width)).shape)
    except (KeyError, RuntimeError, IndexError, ValueError) as problem:
        raise ArtefactError(f"the head's weights do not fit together: {problem}") from problem
    if shape != (1, classes):
        raise ArtefactError(f"the head's weights are for {shape[1]} classes, not {classes}")
    return module
