"""The trunk is frozen; only the head is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlkit.plugin.contract import DatasetStatistics, Phase, Strategy, option


@dataclass(frozen=True)
class Frozen(Strategy):
    """First choice for little data, or data similar to the pretraining data.

    A head that can be solved is solved; epochs and learning rate are for one that is trained by gradient.
    """

    name = "frozen"
    epochs: int = option(100, "epochs of a head that is trained by gradient")
    lr: float = option(1e-3, "learning rate of a head that is trained by gradient")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return (Phase(epochs=self.epochs, head_lr=self.lr),)
