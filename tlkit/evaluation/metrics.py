"""How good predictions are: accuracy with its interval, balanced accuracy, macro-F1, calibration, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.util.statistics import wilson
from tlkit.util.text import table

if TYPE_CHECKING:
    from numpy.typing import NDArray

ECE_BINS = 15
WIDEST, PAIRS = 12, 10  # classes of a confusion matrix that is shown whole, and pairs that are shown of a larger one


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


def described(metrics: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    """Return metrics, given as `Metrics.to_json` does, as lines for people, with the confusion matrix."""
    low, high = metrics["interval"]
    return [
        f"accuracy           {metrics['accuracy']:.1%}  (95 %: {low:.1%} to {high:.1%})",
        f"balanced accuracy  {metrics['balanced_accuracy']:.1%}",
        f"macro-F1           {metrics['macro_f1']:.3f}",
        f"ECE                {metrics['ece']:.3f}",
        f"log loss           {metrics['log_loss']:.3f}",
        *confusion_lines(np.array(metrics["confusion"], np.int64), labels),
    ]


def confusion_lines(confusion: NDArray[np.int64], labels: Sequence[str]) -> list[str]:
    """Return a confusion matrix as a table; of more than `WIDEST` classes the pairs confused most often."""
    if len(labels) <= WIDEST:
        header = ["", *(f"#{index}" for index in range(len(labels))), ""]
        rows = [
            [label, *counts, f"#{index}"] for index, (label, counts) in enumerate(zip(labels, confusion, strict=True))
        ]
        return ["confusion matrix (rows: true class, columns: predicted class):", *table(rows, header)]
    wrong = confusion * ~np.eye(len(labels), dtype=bool)
    pairs = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda pair: (-wrong[pair], pair))
    rows = [[f"{labels[true]} predicted as {labels[called]}", wrong[true, called]] for true, called in pairs[:PAIRS]]
    return ["most frequent confusions:", *(f"  {line}" for line in table(rows))]
