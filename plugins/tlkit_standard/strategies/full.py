"""All stages are trainable, the shallow ones with a lower learning rate than the deep ones.

- When: some hundred images per class, or images different from the pretraining data.
- Why: every layer can adapt; the shallow ones, which are general (Yosinski et al., "How transferable are features in
deep neural networks?", NeurIPS 2014), change least.
- Cost: the highest, forward and backward through the whole network in every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlkit.plugin.contract import DatasetStatistics, Phase
from tlkit_standard.strategies._base import Tuning


@dataclass(frozen=True)
class Full(Tuning):
    name = "full"

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return (self.phase(len(stages)),)
