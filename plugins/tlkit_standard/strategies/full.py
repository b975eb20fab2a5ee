"""All weights learn, the shallow stages more slowly than the deep ones.

- When: some hundred images a class, or images unlike those of the pretraining.
- Why: every layer can adapt; the shallow ones, which are general (Yosinski et al., "How transferable are features in
deep neural networks?", NeurIPS 2014), move least.
- Cost: the most time of all, forward and backward through the whole network in every epoch.
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
