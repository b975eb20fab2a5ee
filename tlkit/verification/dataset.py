"""Compare an export with the trained modules on a whole dataset, image by image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tlkit.evaluation.evaluate import ModelOutputs
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES
from tlkit.util.statistics import wilson
from tlkit.util.text import span
from tlkit.verification.parity import Comparison, HeadOf, Tolerance, compared

OUTPUTS = (FEATURES, LOGITS, PROBABILITIES)


@dataclass(frozen=True, slots=True)
class DatasetComparison:
    """An export against the trained modules. Shares lie in 0..1; `drop` is in percentage points."""

    images: int
    accuracy: float
    trained_accuracy: float
    interval: tuple[float, float]  # of the label agreement, 95 %
    comparison: Comparison

    @property
    def passed(self) -> bool:
        """The verdict: output within the tolerance of the precision, and in fp32 no flipped label that was no tie."""
        return self.comparison.passed

    @property
    def drop(self) -> float:
        """The accuracy drop."""
        return 100 * (self.trained_accuracy - self.accuracy)

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "drop": self.drop, **asdict(self)}

    def lines(self, name: str) -> Iterator[str]:
        """Yield the figures for people; `name` is that of the export."""
        figures, likely = self.comparison, span(self.interval, 2)
        yield f"{name}: {self.images} images against the trained modules: {'same' if self.passed else 'DIFFERS'}"
        yield (
            f"  lowest cosine {figures.cosine:.6f}, largest error of features {figures.feature_error:.3g} and of "
            f"logits {figures.logit_error:.3g}"
        )
        yield (f"  label agreement {figures.agreement:.2%} (95 %: {likely}), flipped labels {figures.flips}")
        yield f"  accuracy {self.accuracy:.2%}, trained {self.trained_accuracy:.2%}: drop {self.drop:.2f} points"


def compare_on_dataset(
    trained: ModelOutputs,
    exported: ModelOutputs,
    tolerance: Tolerance,
    head: HeadOf | None = None,
    activation: str = "softmax",
) -> DatasetComparison:
    """Compare all `OUTPUTS` of an export with those of the trained modules for the same images.

    `head` is the one in the graph, which its logits are compared with below fp32 (see `parity.Comparison`).
    """
    images = len(trained.truth)
    comparison = compared(images, images, trained.arrays, exported.arrays, tolerance, head, activation)
    same = int((trained.predicted == exported.predicted).sum())
    return DatasetComparison(images, exported.accuracy, trained.accuracy, wilson(same, images), comparison)
