"""Verify on a whole folder: hold what was deployed against the trained modules, image by image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tlkit.evaluation.evaluate import ModelOutputs
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES
from tlkit.util.statistics import wilson
from tlkit.verification.parity import Comparison, HeadOf, Tolerance, compared

OUTPUTS = (FEATURES, LOGITS, PROBABILITIES)


@dataclass(frozen=True, slots=True)
class Survey:
    """A deployed graph against the trained modules. Shares lie in 0..1; `drop` is in points of accuracy."""

    images: int
    accuracy: float
    trained_accuracy: float
    interval: tuple[float, float]  # of the agreement, 95 %
    comparison: Comparison

    @property
    def passed(self) -> bool:
        """The gate: everything within the tolerance of the precision, and in fp32 no label flipped that was no tie."""
        return self.comparison.passed

    @property
    def drop(self) -> float:
        """What deploying cost."""
        return 100 * (self.trained_accuracy - self.accuracy)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {"passed": self.passed, "drop": self.drop, **asdict(self)}


def survey(trained: ModelOutputs, deployed: ModelOutputs, tolerance: Tolerance, head: HeadOf | None = None) -> Survey:
    """Hold what a deployed graph answered (all `OUTPUTS`) against what the trained modules did for the same images.

    `head` is the one in the graph, which its logits are held against below fp32 (see `parity.Comparison`).
    """
    images = len(trained.truth)
    comparison = compared(images, images, trained.arrays, deployed.arrays, tolerance, head)
    same = int((trained.called == deployed.called).sum())
    return Survey(images, deployed.accuracy, trained.accuracy, wilson(same, images), comparison)
