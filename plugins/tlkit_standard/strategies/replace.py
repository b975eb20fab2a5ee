"""The deepest stages are reinitialized; the others are frozen, or trainable as well.

- When: a task so different from the original that its deepest layers are of no use, and enough images to train others.
- Why: deep layers are specific to the original task, shallow ones general: only these are transferred (the networks AnB
of Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014, section 2).
- Cost: that of `partial` with as many stages, and more epochs: random weights need a higher learning rate and more
steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlkit.plugin.contract import DatasetStatistics, Phase, option
from tlkit_standard.strategies._base import Tuning


@dataclass(frozen=True)
class Replace(Tuning):
    name = "replace"
    epochs: int = option(20, "epochs with trainable stages")
    trunk_lr: float = option(1e-3, "peak learning rate of the deepest stage")
    reinit: int = option(1, "number of deepest stages that are reinitialized")
    trainable: int | None = option(None, "number of deepest stages that are trainable; none: the reinitialized ones")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        trainable = self.reinit if self.trainable is None else self.trainable
        return (self.phase(trainable, reinit=self.reinit),)
