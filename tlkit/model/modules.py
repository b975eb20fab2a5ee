"""The trunk and the head of a bundle as PyTorch modules, and their outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlkit.model.bundle import Bundle, BundleRecord, Tensors
from tlkit.model.novelty import without_detector
from tlkit.model.trunk import HalfPrecision, Trunk, build, load_tensors
from tlkit.plugin.contract import FEATURES, LOGITS, Backbone, Head
from tlkit.plugin.detection import NOVELTY
from tlkit.util.arrays import slices

BATCH_SIZE = 8


def load_modules(bundle: Bundle, backbone: Backbone, head: Head) -> tuple[Trunk, nn.Module]:
    """Return the trunk and the head of a bundle, with the bundle's weights, in eval mode."""
    record = bundle.record
    trunk = build(backbone, pretrained=False, preprocessing=record.preprocessing).upto(record.cut)
    load_tensors(trunk, bundle.trunk, what="trunk")
    return trunk, load_head(bundle, head, bundle.head)


def load_head(bundle: Bundle, head: Head, tensors: Tensors) -> nn.Module:
    """Return a head for a bundle's trunk and labels, with these tensors, in eval mode.

    Of a head without its detector, the tensors of the detector are left out.
    """
    own = tensors if NOVELTY in head.scores else without_detector(tensors)
    state = {name: torch.from_numpy(tensor) for name, tensor in own.items()}
    return head.restore(bundle.record.width, len(bundle.record.labels), state).eval()


class ScoredHead(nn.Module):
    """A head as a graph computes it: features to logits, or to logits and its scores of these names."""

    def __init__(self, head: nn.Module, scores: Sequence[str]) -> None:
        super().__init__()
        self.head, self.names = head, tuple(scores)

    def forward(self, features: Tensor) -> Tensor | tuple[Tensor, ...]:
        logits: Tensor = self.head(features)
        return (logits, *self.head.scores(features)) if self.names else logits  # type: ignore[operator]


class GraphModule(nn.Module):
    """Trunk, head or both as an exported graph has them: its input to a tuple of its outputs."""

    def __init__(self, trunk: nn.Module | None, head: ScoredHead | None, activation: str) -> None:
        super().__init__()
        self.trunk, self.head, self.activation = trunk, head, activation

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = x if self.trunk is None else self.trunk(x)
        if self.head is None:
            return (features,)
        outputs = self.head(features)
        logits, scores = (outputs[0], outputs[1:]) if self.head.names else (outputs, ())
        if self.trunk is None:
            return (logits, *scores)
        return (features, logits, *scores, logits.softmax(-1) if self.activation == "softmax" else logits.sigmoid())


def graph_module(graph: str, trunk: Trunk, head: nn.Module, record: BundleRecord, *, half: bool = False) -> nn.Module:
    """Return the module of the graph "trunk", "head" or "model", in eval mode; `half`: stages in float16."""
    stages = None if graph == "head" else HalfPrecision(trunk) if half else trunk
    scored = None if graph == "trunk" else ScoredHead(head, record.scores)
    return GraphModule(stages, scored, record.activation).eval()


def run_modules(
    trunk: Trunk, head: nn.Module, images: NDArray[np.uint8], scores: Sequence[str] = ()
) -> dict[str, NDArray[np.float32]]:
    """Return `features`, `logits` and scores of images `(N, S, S, 3)`, the reference that graphs are compared with."""
    batches = np.array_split(images, math.ceil(len(images) / BATCH_SIZE))
    with torch.inference_mode():
        features = torch.cat([trunk(torch.from_numpy(batch)) for batch in batches]).numpy()
    return {FEATURES: features, **head_outputs(head, features, scores)}


def head_outputs(
    head: nn.Module, features: NDArray[np.float32], scores: Sequence[str] = ()
) -> dict[str, NDArray[np.float32]]:
    """Return the logits `(N, classes)` of features `(N, width)`, and the scores `(N,)` of these names."""
    outputs = {LOGITS: head_logits(head, features)}
    if scores:
        with torch.inference_mode():
            values = head.scores(torch.from_numpy(features))  # type: ignore[operator]
        outputs |= {name: value.float().cpu().numpy() for name, value in zip(scores, values, strict=True)}
    return outputs


def run_half(trunk: Trunk, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the features of images by the stages in float16."""
    with torch.inference_mode():
        features: NDArray[np.float32] = HalfPrecision(trunk)(torch.from_numpy(images)).numpy()
    return features


def head_logits(head: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits `(N, classes)` of features `(N, width)`."""
    with torch.inference_mode():
        parts = [head(torch.from_numpy(features[part])).float().cpu() for part in slices(len(features))]
        logits: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def solve_head(
    head: Head,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> nn.Module | None:
    """Return a head fitted to features `(N, width)`, with the images of each of the `groups` `(N,)` together."""
    if groups is None:
        return head.solve(features, labels, classes, seed)
    return head.solve_grouped(features, labels, classes, seed, groups)
