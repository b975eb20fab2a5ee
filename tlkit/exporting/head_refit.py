"""Refit a bundle's head at export, on the features that a quantized trunk gives.

The refitted head is no part of the bundle, which stays as it was trained. Its tensors lie beside the graphs that it is
in, and these are compared with the trained trunk with this head behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors.numpy import save

from tlkit.errors import UsageError
from tlkit.evaluation.evaluate import ModelOutputs
from tlkit.evaluation.metrics import score
from tlkit.graph.trace import head_graph
from tlkit.model import exports
from tlkit.model.bundle import BundleRecord
from tlkit.model.modules import head_outputs, solve_head
from tlkit.model.novelty import NovelHead, head_tensors
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES
from tlkit.util.statistics import activated
from tlkit.verification.trained import TrainedModules

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class RefittedHead:
    """A head of a bundle with new weights."""

    module: nn.Module
    record: BundleRecord

    def graph(self) -> onnx.ModelProto:
        """Return the graph from `features` to `logits` and scores."""
        return head_graph(self.module, self.record.width, self.record.scores)

    def outputs(self, features: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the module's logits `(N, classes)` and scores `(N,)` of features `(N, width)`."""
        return head_outputs(self.module, features, self.record.scores)

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities `(N, classes)` of features `(N, width)`."""
        return activated(self.outputs(features)[LOGITS], self.record.activation)

    def save(self, folder: Path) -> None:
        """Write its tensors among the files of an export."""
        content = {name: np.ascontiguousarray(tensor) for name, tensor in head_tensors(self.module).items()}
        (folder / exports.REFITTED).write_bytes(save(content))


@dataclass(frozen=True, slots=True)
class HeadRefit:
    """A refitted head beside the bundle's own, both measured on the same features of the validation split.

    It is kept if its balanced accuracy is higher, or the same with a lower log loss.
    """

    kept: bool
    accuracy: float
    log_loss: float
    own_accuracy: float
    own_log_loss: float

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.1%}, before {self.own_accuracy:.1%}; log loss {self.log_loss:.4f}, before "
            f"{self.own_log_loss:.4f}; {'kept' if self.kept else 'not kept'}"
        )


def refit(
    modules: TrainedModules,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
) -> RefittedHead:
    """Solve the head of a bundle on features `(N, width)`, labels and groups `(N,)`, with the seed of its training."""
    record = modules.bundle.record
    solved = solve_head(modules.head, features, labels, len(record.labels), record.seed, groups)
    if solved is None:
        what = f"head {modules.head.name} learns by gradient, and only one that is solved can be refitted"
        raise UsageError(what, file=modules.bundle.root, do="leave out --refit-head")
    return RefittedHead(solved.eval(), record)


def better(own: ModelOutputs, refitted: RefittedHead) -> tuple[RefittedHead | None, HeadRefit, ModelOutputs]:
    """Return the refitted head if it is better than the bundle's own, the comparison, and the better one's outputs.

    `own` are those for the validation images, on which the novelty of the refitted head is scaled.
    """
    given = refitted.probabilities(own.arrays[FEATURES])
    before, after = (score(each, own.truth) for each in (own.arrays[PROBABILITIES], given))
    kept = (after.balanced_accuracy, -after.log_loss) > (before.balanced_accuracy, -before.log_loss)
    comparison = HeadRefit(kept, after.accuracy, after.log_loss, before.accuracy, before.log_loss)
    if not kept:
        return None, comparison, own
    if isinstance(refitted.module, NovelHead):
        refitted = replace(refitted, module=refitted.module.scaled(own.arrays[FEATURES]))
    return refitted, comparison, replace(own, arrays={**own.arrays, PROBABILITIES: given})
