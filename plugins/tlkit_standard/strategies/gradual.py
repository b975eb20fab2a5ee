"""The head is trained first, then stages are unfrozen one by one, from the deepest up.

- When: few images and a task far from the pretraining, where `full` would forget the pretrained features.
- Why: the deepest layers, the least general, adapt first, and the learning rate falls by 2.6 from layer to layer
(ULMFiT: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018, 3.1, 3.3).
- Cost: `epochs` for each stage that is unfrozen; the first of them are cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlkit.plugin.contract import DatasetStatistics, Phase, option
from tlkit_standard.strategies._base import Probing


@dataclass(frozen=True)
class Gradual(Probing):
    name = "gradual"
    epochs: int = option(1, "epochs per stage that is unfrozen")
    lr_decay: float = option(0.385, "factor on the learning rate per stage, going shallower; 1 / 2.6")
    trainable: int | None = option(None, "number of deepest stages that are trainable at the end; none: all")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        last = len(stages) if self.trainable is None else self.trainable
        return self.probe(), *(self.phase(trainable) for trainable in range(1, last + 1))
