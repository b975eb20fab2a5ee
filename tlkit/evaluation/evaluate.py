"""An exported model measured on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.data import dataset as folder
from tlkit.data.dataset import Sample
from tlkit.errors import DataError, UsageError
from tlkit.evaluation.metrics import Metrics, described, score
from tlkit.plugin.contract import PROBABILITIES, Progress, silent
from tlkit.runtime.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """Arrays by output and true labels `(N,)`, row for row, of the usable images; by path, why the others were not."""

    arrays: dict[str, NDArray[np.float32]]
    truth: NDArray[np.int64]
    rejected: dict[str, str]

    @property
    def called(self) -> NDArray[np.int64]:
        """The most probable label of each image."""
        called: NDArray[np.int64] = self.arrays[PROBABILITIES].argmax(1)
        return called

    @property
    def accuracy(self) -> float:
        """The share of images that are called rightly."""
        return float((self.called == self.truth).mean())


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Metrics over the readable images of one split; by path, why the others were rejected."""

    metrics: Metrics
    labels: tuple[str, ...]
    split: str  # "all" for a dataset without splits of its own
    rejected: dict[str, str]

    @property
    def images(self) -> int:
        """All images, the rejected ones included."""
        return self.metrics.images + len(self.rejected)

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.metrics.images} images ({self.split})", *described(self.metrics.to_json(), self.labels)]
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        labels = list(self.labels)
        return {"split": self.split, "labels": labels, **self.metrics.to_json(), "rejected": self.rejected}


def labelled(source: Path, labels: Sequence[str], split: str | None = None) -> tuple[str, tuple[Sample, ...]]:
    """The images of `source` to measure on, and the name of their split.

    Of data with a split of its own the named one, or test, or else val; of data without one all images.
    """
    dataset = folder.read(source, labels=labels)
    if not dataset.given_split:
        if split is not None:
            raise UsageError(f"it has no split {split!r} of its own", file=source, do="leave out --split to use it all")
        return "all", dataset.samples
    given = [name for name in ("test", "val", "train") if dataset.of(name)]
    chosen = split or given[0]
    if chosen not in given:
        raise UsageError(f"it has no split {chosen!r}", file=source, do=f"choose one of {', '.join(given)}")
    return chosen, dataset.of(chosen)


def evaluate(model: Model, source: Path, *, split: str | None = None, progress: Progress = silent) -> EvaluationResult:
    """Predict the labelled images of a source, see `labelled`, and compare with their labels."""
    name, samples = labelled(source, model.labels, split)
    given = answers(model, samples, progress("evaluating", len(samples)))
    metrics = score(given.arrays[PROBABILITIES], given.truth)
    return EvaluationResult(metrics, tuple(model.labels), name, given.rejected)


def answers(
    model: Model, samples: Sequence[Sample], tick: Callable[[int], object], outputs: Sequence[str] = (PROBABILITIES,)
) -> ModelOutputs:
    """What a model says of labelled images; `tick(n)` is called whenever n more are done."""
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in outputs}
    truth, rejected, known = [], {}, iter(samples)
    for chunk in model.stream([sample.path for sample in samples], outputs):
        for row in chunk.rows:
            sample = next(known)
            if row.reason is None:
                truth.append(sample.label)
            else:
                rejected[str(row.file)] = row.reason
        for name, array in chunk.arrays.items():
            parts[name].append(array)
        tick(len(chunk.rows))
    if not truth:
        raise DataError("none of its images can be used", file=samples[0].path.parent)
    return ModelOutputs(
        {name: np.concatenate(part) for name, part in parts.items()}, np.array(truth, np.int64), rejected
    )
