"""The head learns first, then stage after stage joins in, from the deepest up.

- When: few images and a task far from the pretraining, where `full` forgets what was known.
- Why: the deepest layers, the least general, adapt before the others are touched, and the rate falls by 2.6 from layer
to layer (ULMFiT: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018, 3.1, 3.3).
- Cost: `epochs` for each stage that joins in; the first of them are cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlkit.plugin.contract import DatasetStatistics, Phase, option
from tlkit_standard.strategies._base import Probing


@dataclass(frozen=True)
class Gradual(Probing):
    name = "gradual"
    epochs: int = option(1, "epochs after each stage that joins in")
    lr_decay: float = option(0.385, "factor on the learning rate from a stage to the one above it; 1 / 2.6")
    trainable: int | None = option(None, "deepest stages that learn in the end; none: all")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        most = len(stages) if self.trainable is None else self.trainable
        return self.probe(), *(self.phase(trainable) for trainable in range(1, most + 1))
