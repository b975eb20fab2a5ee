"""All stages are reinitialized: no transfer.

- When: for comparison, or with very many images that differ from the pretraining data.
- Why: to measure the value of the pretraining. With enough images and epochs it is worth little (He et al., "Rethinking
ImageNet Pre-training", ICCV 2019); with few it is worth nearly everything.
- Cost: an epoch costs as much as one of `full`, and many more are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlkit.plugin.contract import DatasetStatistics, Phase, option
from tlkit_standard.strategies._base import Tuning


@dataclass(frozen=True)
class Scratch(Tuning):
    name = "scratch"
    epochs: int = option(100, "epochs")
    trunk_lr: float = option(1e-3, "peak learning rate of the deepest stage")
    lr_decay: float = option(1.0, "factor on the learning rate per stage, going shallower")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return (self.phase(len(stages), reinit=len(stages)),)
