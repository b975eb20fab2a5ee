"""The contract of detectors, which tell images of no known class: a kind of component beside those of `contract`.

A detector is fitted on the features that the head was fitted on, and becomes a part of the exported graph: its score is
the output `novelty` of `model.onnx`, compared with PyTorch like the logits, in every precision and on every target.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tlkit.plugin.contract import Component

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

ROUNDING = 5e-3  # of a detector's scores
NOVELTY = "novelty"  # output of a graph, float32 (N,): 0 for a typical image, 1 at the threshold to be unknown


class Detector(Component):
    """Score that is higher for images that differ from those of training: always a module of core ONNX operators.

    Its scale is its own, of about 1: tlkit brings what typical held-out images have to 0, and the threshold to 1.
    Differences below 0.005 count as rounding.
    """

    kind = "detector"

    @abstractmethod
    def fit(self, features: NDArray[np.float32], labels: NDArray[np.int64], head: nn.Module, seed: int) -> nn.Module:
        """Return a module from features `(N, width)` to scores `(N,)`, higher for images that are more novel.

        It is fitted on the features of the training images and their labels `(N,)`. `head` gives their logits; a module
        may hold it, and need not.
        """

    @abstractmethod
    def restore(self, tensors: Mapping[str, Any], head: nn.Module) -> nn.Module:
        """Return the fitted module whose state dict, without the tensors of `head`, is `tensors`."""
