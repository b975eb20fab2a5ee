"""The trunk and the head of a bundle as PyTorch modules, and their outputs."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlkit.model.bundle import Bundle, Tensors
from tlkit.model.trunk import HalfPrecision, Trunk, build, load_tensors
from tlkit.plugin.contract import FEATURES, LOGITS, Backbone, Head

BATCH_SIZE = 8


def load_modules(bundle: Bundle, backbone: Backbone, head: Head) -> tuple[Trunk, nn.Module]:
    """Return the trunk and the head of a bundle, with the bundle's weights, in eval mode."""
    record = bundle.record
    trunk = build(backbone, pretrained=False, preprocessing=record.preprocessing).upto(record.cut)
    load_tensors(trunk, bundle.trunk, what="trunk")
    return trunk, load_head(bundle, head, bundle.head)


def load_head(bundle: Bundle, head: Head, tensors: Tensors) -> nn.Module:
    """Return a head for a bundle's trunk and labels, with these tensors, in eval mode."""
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    return head.restore(bundle.record.width, len(bundle.record.labels), state).eval()


class GraphModule(nn.Module):
    """What an exported graph computes: its input to a tuple of its outputs."""

    def __init__(self, trunk: nn.Module | None, head: nn.Module | None) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = x if self.trunk is None else self.trunk(x)
        if self.head is None:
            return (features,)
        logits = self.head(features)
        return (logits,) if self.trunk is None else (features, logits, logits.softmax(-1))


def graph_module(graph: str, trunk: Trunk, head: nn.Module, *, half: bool = False) -> nn.Module:
    """Return the module of the graph "trunk", "head" or "model", in eval mode; `half`: stages in float16."""
    if graph == "head":
        return GraphModule(None, head).eval()
    return GraphModule(HalfPrecision(trunk) if half else trunk, None if graph == "trunk" else head).eval()


def run_modules(trunk: Trunk, head: nn.Module, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Return `features` and `logits` of images `(N, S, S, 3)`, the reference that graphs are compared with."""
    batches = np.array_split(images, math.ceil(len(images) / BATCH_SIZE))
    with torch.inference_mode():
        features = torch.cat([trunk(torch.from_numpy(batch)) for batch in batches]).numpy()
    return {FEATURES: features, LOGITS: head_logits(head, features)}


def run_half(trunk: Trunk, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the features of images by the stages in float16."""
    with torch.inference_mode():
        features: NDArray[np.float32] = HalfPrecision(trunk)(torch.from_numpy(images)).numpy()
    return features


def head_logits(head: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits `(N, classes)` of features `(N, width)`."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = head(torch.from_numpy(features)).float().cpu().numpy()
    return logits
