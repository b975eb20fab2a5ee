"""A head with a detector of unknown images beside it: one module, whose last score is `novelty`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlkit.errors import ArtifactError
from tlkit.model.trunk import tensors
from tlkit.plugin.contract import Head
from tlkit.plugin.detection import NOVELTY, Detector

# Of tensors in a bundle; those of the head have their own names.
DETECTOR, MIDDLE, SCALE = "novelty.detector.", "novelty.middle", "novelty.scale"


class NovelHead(nn.Module):
    """A head whose scores end with `(detector(features) - middle) / scale`.

    A detector may hold the head.
    """

    middle: Tensor
    scale: Tensor

    def __init__(self, head: nn.Module, detector: nn.Module, middle: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.head, self.detector = head, detector
        self.register_buffer("middle", torch.tensor(middle))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits

    def scores(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return the scores `(N,)` of the head, and the novelty."""
        own = self.head.scores(features) if hasattr(self.head, "scores") else ()  # type: ignore[operator]
        return (*own, (self.detector(features) - self.middle) / self.scale)


class DetectingHead(Head):
    """A head and a detector as one component, for whom fits, stores and exports heads."""

    def __init__(self, head: Head, detector: Detector) -> None:
        self.head, self.detector = head, detector
        self.name, self.scores, self.activation = head.name, (*head.scores, NOVELTY), head.activation  # type: ignore[misc]

    def module(self, width: int, classes: int) -> nn.Module:
        return self.head.module(width, classes)

    def solve(
        self, features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, seed: int
    ) -> nn.Module | None:
        solved = self.head.solve(features, labels, classes, seed)
        if solved is None:
            return None
        # Scaled on other images than it is fitted on: every training image is its own nearest neighbor.
        fitted = self.detector.fit(features[::2], labels[::2], solved.eval(), seed)
        return scaled(solved, fitted, features[1::2])

    def restore(self, width: int, classes: int, tensors: Mapping[str, Any]) -> nn.Module:
        if MIDDLE not in tensors or SCALE not in tensors:
            raise ArtifactError("the tensors of its detector are missing", do="train again")
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("novelty.")}
        rest = {name.removeprefix(DETECTOR): tensor for name, tensor in tensors.items() if name.startswith(DETECTOR)}
        head = self.head.restore(width, classes, own).eval()
        return NovelHead(head, self.detector.restore(rest, head), float(tensors[MIDDLE]), float(tensors[SCALE])).eval()


def head_tensors(head: nn.Module) -> dict[str, NDArray[np.generic]]:
    """Return the state of a head, and of a detector beside it; the tensors of a head that this holds are there once."""
    if not isinstance(head, NovelHead):
        return tensors(head)
    held = tuple(f"{name}." for name, module in head.detector.named_modules() if module is head.head)
    state = tensors(head.detector).items()
    beside = {DETECTOR + name: tensor for name, tensor in state if not (held and name.startswith(held))}
    return {**tensors(head.head), **beside, MIDDLE: head.middle.numpy().copy(), SCALE: head.scale.numpy().copy()}


def scaled(head: nn.Module, detector: nn.Module, known: NDArray[np.float32], kept: float = 0.95) -> NovelHead:
    """Return a head with a detector whose score is 0 for the median of images `(N, width)` of known classes.

    The score is 1 where the share `kept` of them lies below.
    """
    values = raw_scores(detector, known)
    middle, threshold = np.quantile(values, [0.5, kept])
    return NovelHead(head, detector.eval(), float(middle), max(float(threshold - middle), 1e-6)).eval()


def raw_scores(detector: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what a detector gives for features `(N, width)`, as `(N,)`."""
    with torch.inference_mode():
        return detector.eval()(torch.from_numpy(features)).double().numpy()  # type: ignore[no-any-return]


class WithoutClass(nn.Module):
    """A head without the logit of one class, as if there were none."""

    def __init__(self, head: nn.Module, label: int) -> None:
        super().__init__()
        self.head, self.label = head, label

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return torch.cat([logits[:, : self.label], logits[:, self.label + 1 :]], dim=1)
