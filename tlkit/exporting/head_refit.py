"""A bundle's head fitted again at export, on the features that a quantised trunk gives.

It is no part of the bundle, which stays as it was trained. Its tensors lie beside the graphs that it is in, and these
are held against the trained trunk with this head behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from safetensors.numpy import save

from tlkit.errors import UsageError
from tlkit.graph import trace
from tlkit.model import exports
from tlkit.model.bundle import Bundle
from tlkit.model.modules import head_logits, load_head
from tlkit.model.trunk import tensors
from tlkit.plugin.contract import Head
from tlkit.verification.parity import HeadOf

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

Fit = Callable[["NDArray[np.float32]", "NDArray[np.int64]"], "Refitted"]  # (features, labels) -> head


@dataclass(frozen=True, slots=True)
class Refitted:
    """A head that was fitted again."""

    module: nn.Module
    width: int

    def graph(self) -> onnx.ModelProto:
        """`features` to `logits`."""
        return trace.head_graph(self.module, self.width)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the module itself gives for features `(N, width)`: `(N, classes)`."""
        return head_logits(self.module, features)

    def save(self, place: Path) -> None:
        """Write its tensors among the files of a by-product."""
        content = {name: np.ascontiguousarray(tensor) for name, tensor in tensors(self.module).items()}
        (place / exports.REFITTED).write_bytes(save(content))


def fit(bundle: Bundle, head: Head, features: NDArray[np.float32], labels: NDArray[np.int64]) -> Refitted:
    """Solve the head of a bundle on features `(N, width)` and labels `(N,)`, with the seed of its training."""
    record = bundle.record
    solved = head.solve(features, labels, len(record.labels), record.seed)
    if solved is None:
        what = f"head {head.name} learns by gradient, and only one that is solved can be fitted again"
        raise UsageError(what, file=bundle.root, do="leave out --refit-head")
    return Refitted(solved.eval(), record.width)


def deployed(bundle: Bundle, head: Head, target: str, precision: str) -> HeadOf:
    """The head of a by-product, be it the bundle's own or one that was fitted again, as PyTorch runs it."""
    again = exports.refitted(bundle.root / target / precision)
    return partial(head_logits, load_head(bundle, head, bundle.head if again is None else again))
