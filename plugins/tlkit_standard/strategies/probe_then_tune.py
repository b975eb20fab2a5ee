"""The head is trained first, on the frozen trunk; then both are trained.

- When: as `full`, above all if images in production differ from the training images.
- Why: the large errors of an untrained head distort good features; a trained one hardly changes them (LP-FT: Kumar et
al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022).
- Cost: that of `full`, and a few seconds for the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlkit.plugin.contract import DatasetStatistics, Phase, option
from tlkit_standard.strategies._base import Probing


@dataclass(frozen=True)
class ProbeThenTune(Probing):
    name = "probe-then-tune"
    trainable: int | None = option(None, "number of deepest stages that are trainable at the end; none: all")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return self.probe(), self.phase(len(stages) if self.trainable is None else self.trainable)
