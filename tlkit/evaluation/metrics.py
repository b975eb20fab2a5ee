"""Classification metrics: accuracy with its interval, balanced accuracy, macro-F1, calibration, confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.util.statistics import balanced_interval, wilson
from tlkit.util.text import span, table

ECE_BINS = 15
MAX_MATRIX = 12  # classes; the confusion of more is printed as its most frequent pairs
MAX_PAIRS = 10
MAX_LABEL = 12  # characters of a label above a column


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics of a classifier; `confusion[i, j]` counts images of class i that were predicted as j."""

    images: int
    accuracy: float
    interval: tuple[float, float]  # 95 %, of the accuracy
    balanced_accuracy: float
    macro_f1: float
    ece: float
    log_loss: float
    confusion: NDArray[np.int64]
    reliability: NDArray[np.float64]  # a row for each bin of confidence: images, mean confidence, accuracy

    @property
    def recall(self) -> list[float | None]:
        """Share of the images of each class that are predicted correctly; None for a class without an image."""
        sizes, hits = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
        return [hit / size if size else None for hit, size in zip(hits, sizes, strict=True)]

    @property
    def balanced_interval(self) -> tuple[float, float]:
        """95 % interval of the balanced accuracy."""
        return balanced_interval(self.confusion.diagonal(), self.confusion.sum(1))

    @property
    def majority(self) -> float:
        """Accuracy of a classifier that always predicts the most frequent class."""
        return float(self.confusion.sum(1).max() / self.images)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Metrics:
        """Return the metrics of which `facts` are `to_json`."""
        arrays = {
            "interval": tuple(facts["interval"]),
            "confusion": np.array(facts["confusion"], np.int64),
            "reliability": np.array(facts["reliability"], np.float64),
        }
        return cls(**{each.name: facts[each.name] for each in fields(cls)} | arrays)

    def __repr__(self) -> str:
        return "\n".join(metric_lines(self))

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values, with the recall of each class and the share of the most frequent one."""
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {"interval": list(self.interval)}
        values |= {"recall": self.recall, "majority": self.majority, "balanced_interval": list(self.balanced_interval)}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def score(probabilities: NDArray[np.float32], labels: Sequence[int] | NDArray[np.int64]) -> Metrics:
    """Return the metrics of probabilities `(N, classes)` against true labels `(N,)`, N at least 1.

    Classes without an image count neither in balanced accuracy nor in macro-F1.
    """
    truth = np.asarray(labels, np.int64)
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    confusion = np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    correct = int(np.trace(confusion))
    present = confusion.sum(1) > 0
    hits, size, predictions = confusion.diagonal()[present], confusion.sum(1)[present], confusion.sum(0)[present]
    likelihood = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return Metrics(
        images=len(truth),
        accuracy=correct / len(truth),
        interval=wilson(correct, len(truth)),
        balanced_accuracy=float(np.mean(hits / size)),
        macro_f1=float(np.mean(2 * hits / (size + predictions))),
        ece=calibration_error(bins := reliability(probabilities.max(1), predicted == truth)),
        log_loss=float(-np.log(np.maximum(likelihood, np.finfo(np.float32).tiny)).mean()),
        confusion=confusion,
        reliability=bins,
    )


def reliability(confidence: NDArray[np.float32], correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return images, mean confidence and accuracy in each of `ECE_BINS` equal bins of confidence: `(ECE_BINS, 3)`."""
    place = np.clip((confidence * ECE_BINS).astype(int), 0, ECE_BINS - 1)
    images, confidences, hits = (
        np.bincount(place, weights, minlength=ECE_BINS) for weights in (None, confidence.astype(np.float64), correct)
    )
    return np.stack([images, confidences / np.maximum(images, 1), hits / np.maximum(images, 1)], axis=1)


def calibration_error(bins: NDArray[np.float64]) -> float:
    """Return the expected calibration error (Naeini et al. 2015): |confidence - accuracy|, weighted by bin size."""
    images, confidence, accuracy = bins.T
    return float((images * np.abs(confidence - accuracy)).sum() / images.sum())


def metric_lines(metrics: Metrics, labels: Sequence[str] = ()) -> list[str]:
    """Return metrics as text; with labels the confusion matrix too."""
    return [
        f"accuracy           {metrics.accuracy:.1%} (95 % interval {span(metrics.interval)})",
        f"most frequent class {metrics.majority:.1%} of the images",
        f"balanced accuracy  {metrics.balanced_accuracy:.1%} (95 % interval {span(metrics.balanced_interval)})",
        f"macro-F1           {metrics.macro_f1:.3f}",
        f"ECE                {metrics.ece:.3f}",
        f"log loss           {metrics.log_loss:.3f}",
        *(confusion_lines(metrics.confusion, labels) if labels else ()),
    ]


def confusion_lines(confusion: NDArray[np.int64], labels: Sequence[str]) -> list[str]:
    """Return a confusion matrix with labels on both axes; of many classes, the pairs that are confused most often."""
    if len(labels) <= MAX_MATRIX:
        columns = [label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…" for label in labels]
        rows = [
            [label, *counts, f"{counts[i] / counts.sum():.1%}" if counts.any() else ""]
            for i, (label, counts) in enumerate(zip(labels, confusion, strict=True))
        ]
        title = "confusion matrix (rows: true class, columns: predicted class):"
        return [title, *table(rows, ["", *columns, "recall"])]
    pairs = sorted((-int(confusion[i, j]), i, j) for i, j in np.argwhere(confusion) if i != j)[:MAX_PAIRS]
    rows = [[f"{labels[i]} predicted as {labels[j]}", -count] for count, i, j in pairs]
    sizes = confusion.sum(1)
    worst = sorted((confusion[i, i] / sizes[i], int(i)) for i in np.flatnonzero(sizes))[:MAX_PAIRS]
    lowest = ", ".join(f"{labels[i]} {recall:.1%}" for recall, i in worst)
    return [f"lowest recall: {lowest}", "most frequent confusions:", *(f"  {line}" for line in table(rows))]
