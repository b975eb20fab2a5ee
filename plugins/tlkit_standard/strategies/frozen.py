"""The trunk stays as it was pretrained; only the head learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlkit.plugin.contract import DatasetStatistics, Phase, Strategy, option


@dataclass(frozen=True)
class Frozen(Strategy):
    """Classify deep features: first choice for little data, or data like the original.

    A head that can be solved is solved; the epochs and the rate are for one that learns by gradient.
    """

    name = "frozen"
    epochs: int = option(100, "epochs for a head that learns by gradient")
    lr: float = option(1e-3, "its learning rate")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return (Phase(epochs=self.epochs, head_lr=self.lr),)
