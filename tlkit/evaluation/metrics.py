"""How good predictions are: accuracy with its interval, balanced accuracy, macro-F1, calibration, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.util.statistics import wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

ECE_BINS = 15


@dataclass(frozen=True, slots=True)
class Metrics:
    """`confusion[i, j]` counts images of class i that were called j; shares lie in 0..1."""

    images: int
    accuracy: float
    interval: tuple[float, float]  # 95 %
    balanced_accuracy: float
    macro_f1: float
    ece: float
    log_loss: float
    confusion: NDArray[np.int64]
    reliability: NDArray[np.float64]  # a row for each bin of confidence: images, mean confidence, share that was right

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "ece": self.ece,
            "log_loss": self.log_loss,
            "confusion": self.confusion.tolist(),
            "reliability": self.reliability.tolist(),
        }


def score(probabilities: NDArray[np.float32], labels: Sequence[int] | NDArray[np.int64]) -> Metrics:
    """Scores of probabilities `(N, classes)` against true labels `(N,)`, N at least 1.

    Classes without an image count neither in balanced accuracy nor in macro-F1.
    """
    truth = np.asarray(labels, np.int64)
    classes = probabilities.shape[1]
    called = probabilities.argmax(1)
    confusion = np.bincount(truth * classes + called, minlength=classes * classes).reshape(classes, classes)
    right = int(np.trace(confusion))
    present = confusion.sum(1) > 0
    hits, size, calls = confusion.diagonal()[present], confusion.sum(1)[present], confusion.sum(0)[present]
    likely = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return Metrics(
        images=len(truth),
        accuracy=right / len(truth),
        interval=wilson(right, len(truth)),
        balanced_accuracy=float(np.mean(hits / size)),
        macro_f1=float(np.mean(2 * hits / (size + calls))),
        ece=calibration_error(bins := reliability(probabilities.max(1), called == truth)),
        log_loss=float(-np.log(np.maximum(likely, np.finfo(np.float32).tiny)).mean()),
        confusion=confusion,
        reliability=bins,
    )


def reliability(confidence: NDArray[np.float32], right: NDArray[np.bool_], bins: int = ECE_BINS) -> NDArray[np.float64]:
    """Images, mean confidence and share that was right in each of `bins` equal bins of confidence: `(bins, 3)`."""
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    images, sure, hits = (
        np.bincount(place, weights, minlength=bins) for weights in (None, confidence.astype(np.float64), right)
    )
    return np.stack([images, sure / np.maximum(images, 1), hits / np.maximum(images, 1)], axis=1)


def calibration_error(bins: NDArray[np.float64]) -> float:
    """Expected calibration error (Naeini et al. 2015): |confidence - share right| over the bins, weighted by size."""
    images, confidence, right = bins.T
    return float((images * np.abs(confidence - right)).sum() / images.sum())
