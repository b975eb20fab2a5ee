"""The deepest stages learn, the others stay as they were.

- When: too few images for `full`, or images like those of the pretraining.
- Why: deep layers are those that are specific to the original task; fewer weights that move overfit less (Yosinski et
al., "How transferable are features in deep neural networks?", NeurIPS 2014).
- Cost: less time than `full`, as no gradient is needed above the stages that move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlkit.plugin.contract import DatasetStatistics, Phase, option
from tlkit_standard.strategies._base import Tuning


@dataclass(frozen=True)
class Partial(Tuning):
    name = "partial"
    trainable: int | None = option(None, "deepest stages that learn; none: two, or the only one there is")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return (self.phase(min(2, len(stages)) if self.trainable is None else self.trainable),)
