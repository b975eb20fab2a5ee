"""The deepest stages are trainable, the others frozen.

- When: too few images for `full`, or images similar to the pretraining data.
- Why: deep layers are specific to the original task; fewer trainable weights overfit less (Yosinski et al., "How
transferable are features in deep neural networks?", NeurIPS 2014).
- Cost: less than `full`, as frozen stages need no gradient and their output is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlkit.plugin.contract import DatasetStatistics, Phase, option
from tlkit_standard.strategies._base import Tuning


@dataclass(frozen=True)
class Partial(Tuning):
    name = "partial"
    trainable: int | None = option(None, "number of deepest stages that are trainable; none: two, or the only one")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return (self.phase(min(2, len(stages)) if self.trainable is None else self.trainable),)
