"""Evaluate an exported model on labeled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tlkit.data import dataset as datasets
from tlkit.data.dataset import Dataset, Sample
from tlkit.data.scan import FileCounts
from tlkit.errors import DataError, UsageError
from tlkit.evaluation.metrics import Metrics, metric_lines, score
from tlkit.model.bundle import count_trained_on
from tlkit.plugin.contract import PROBABILITIES, Progress, silent
from tlkit.util.text import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tlkit.runtime.model import Model


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """Arrays by output and true labels `(N,)` of the readable images, and the rejected ones: path to reason."""

    arrays: dict[str, NDArray[np.float32]]
    truth: NDArray[np.int64]
    rejected: dict[str, str]
    sha256: tuple[str, ...] = ()  # of the readable files, hex
    samples: tuple[Sample, ...] = ()  # the readable ones

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable label of each image."""
        predicted: NDArray[np.int64] = self.arrays[PROBABILITIES].argmax(1)
        return predicted

    @property
    def accuracy(self) -> float:
        """Share of the images that are predicted correctly."""
        return float((self.predicted == self.truth).mean())


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Metrics over the readable images of a split; rejected images and skipped files, each path to reason."""

    metrics: Metrics
    labels: tuple[str, ...]
    split: str  # or "all"
    rejected: Mapping[str, str]
    skipped: Mapping[str, str] = field(default_factory=dict)
    other_splits: int = 0  # images of splits that were not asked for
    trained_on: int | None = None  # images that the model was trained on; None if its bundle is not at hand

    @property
    def images(self) -> int:
        """Number of all images, including the rejected ones."""
        return self.metrics.images + len(self.rejected)

    @property
    def files(self) -> FileCounts:
        """All files of the source, counted."""
        return FileCounts.of(self.metrics.images, self.rejected, self.skipped, self.other_splits)

    def __repr__(self) -> str:
        lines = metric_lines(self.metrics, self.labels)
        known = trained_on_line(self.trained_on, self.metrics.images)
        return "\n".join([f"{counted(self.metrics.images, 'image')} ({self.split})", *known, *lines])

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {
            "split": self.split,
            "labels": list(self.labels),
            **self.metrics.to_json(),
            "trained_on": self.trained_on,
            "rejected": dict(self.rejected),
            "skipped": dict(self.skipped),
            "files": asdict(self.files),
        }


def evaluate(model: Model, source: Path, *, split: str | None = None, progress: Progress = silent) -> EvaluationResult:
    """Return the metrics of a model on a labeled dataset, or on one split of it (see `select_samples`)."""
    chosen, samples, dataset = select_samples(source, model.labels, split)
    outputs = run_samples(model, samples, progress("evaluating", len(samples)))
    metrics = score(outputs.arrays[PROBABILITIES], outputs.truth)
    others = len(dataset.samples) - len(samples)
    bundle = model.bundle
    known = None if bundle is None else count_trained_on(bundle, outputs.sha256)
    return EvaluationResult(metrics, model.labels, chosen, outputs.rejected, dataset.skipped, others, known)


def trained_on_line(known: int | None, images: int) -> list[str]:
    """Return a line that says how many of some images had been trained on, if any."""
    return [f"trained on {known} of these {images}: figures of new images are lower"] if known else []


class Selection(NamedTuple):
    """The samples of one split, or of "all", and the dataset that they belong to."""

    split: str
    samples: tuple[Sample, ...]
    dataset: Dataset


def select_samples(source: Path, labels: Sequence[str], split: str | None = None) -> Selection:
    """Return the samples of one split.

    Of a dataset with its own splits that is `split`, by default test or else val; of another "all", all samples.
    """
    dataset = datasets.read(source, labels=labels)
    if not dataset.given_split:
        if split is not None:
            raise UsageError(f"it has no split {split!r} of its own", file=source, do="leave out --split to use it all")
        return Selection("all", dataset.samples, dataset)
    given = [name for name in ("test", "val", "train") if dataset.of(name)]
    chosen = split or given[0]
    if chosen not in given:
        raise UsageError(f"it has no split {chosen!r}", file=source, do=f"choose one of {', '.join(given)}")
    return Selection(chosen, dataset.of(chosen), dataset)


def run_samples(
    model: Model, samples: Sequence[Sample], tick: Callable[[int], object], outputs: Sequence[str] = (PROBABILITIES,)
) -> ModelOutputs:
    """Return the outputs of a model for labeled images; `tick(n)` is called when n more are done."""
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in outputs}
    kept, hashes, rejected, remaining = list[Sample](), list[str](), {}, iter(samples)
    for batch in model.stream([sample.path for sample in samples], outputs, hashed=True):
        for image in batch.images:
            sample = next(remaining)
            if image.reason is None:
                kept.append(sample)
                hashes.append(image.sha256)
            else:
                rejected[image.name] = image.reason
        for name, array in batch.arrays.items():
            parts[name].append(array)
        tick(len(batch.images))
    if not kept:
        name, reason = next(iter(rejected.items()), ("", "there is none"))
        raise DataError(f"no image can be read; the first: {reason}", file=name or None)
    arrays = {name: np.concatenate(part) for name, part in parts.items()}
    truth = np.array([sample.label for sample in kept], np.int64)
    return ModelOutputs(arrays, truth, rejected, tuple(hashes), tuple(kept))
