"""All stages begin from random weights: no transfer at all.

- When: for comparison, or with very many images that are nothing like those of the pretraining.
- Why: to see what the pretraining is worth. With enough images and epochs it is worth little (He et al., "Rethinking
ImageNet Pre-training", ICCV 2019); with few it is worth nearly everything.
- Cost: an epoch takes what one of `full` takes, and many more are needed.
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
    trunk_lr: float = option(1e-3, "highest learning rate of the deepest stage")
    lr_decay: float = option(1.0, "factor on the learning rate from a stage to the one above it")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return (self.phase(len(stages), reinit=len(stages)),)
