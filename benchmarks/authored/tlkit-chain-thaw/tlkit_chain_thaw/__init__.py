"""Chain-thaw: the head, then each stage alone, then everything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tlkit import DatasetStatistics, Phase, Strategy, hookimpl, option


@dataclass(frozen=True)
class ChainThawStrategy(Strategy):
    """Train one layer after the other (Felbo et al., "Using millions of emoji occurrences ...", EMNLP 2017)."""

    name = "chain-thaw"
    epochs: int = option(2, "epochs of each phase", minimum=1)
    lr: float = option(1e-3, "learning rate of the head", minimum=1e-8)
    trunk_lr: float = option(1e-4, "learning rate of the stages", minimum=1e-8)

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        """Return a phase for the head, one for each stage, shallow to deep, and one for all of them."""
        head = Phase(epochs=self.epochs, head_lr=self.lr)
        alone = [
            Phase(epochs=self.epochs, head_lr=self.lr, trunk_lr=self.trunk_lr, trainable=(stage,)) for stage in stages
        ]
        together = Phase(epochs=self.epochs, head_lr=self.lr, trunk_lr=self.trunk_lr, trainable=len(stages))
        return (head, *alone, together)


@hookimpl
def tlkit_strategies() -> Iterable[Strategy]:
    """Return the strategy."""
    return [ChainThawStrategy()]
