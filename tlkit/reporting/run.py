"""The report on a model: the order of the work, top to bottom, and its result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.data import table
from tlkit.data.scan import FileCounts
from tlkit.evaluation.conformal import Achieved, achieved
from tlkit.evaluation.evaluate import select_samples
from tlkit.evaluation.metrics import Metrics, metric_lines, score
from tlkit.graph import metadata
from tlkit.model.bundle import count_trained_on
from tlkit.pages import html as pages
from tlkit.plugin.contract import PROBABILITIES, Progress, silent
from tlkit.reporting import predictions
from tlkit.reporting.confusions import Comparison, Pair, compare, mistakes, pairs
from tlkit.reporting.doubts import Doubts, doubts
from tlkit.reporting.findings import Finding, findings, next_step
from tlkit.reporting.html import page
from tlkit.reporting.images import Images, pass_over
from tlkit.reporting.selective import Selective, selective
from tlkit.reporting.slices import Slice, slices
from tlkit.runtime.model import Model
from tlkit.runtime.reference import training_images
from tlkit.util.text import counted

WARM_UP, RUNS = 3, 15  # of one image, for the latency
SHOWN = 10  # slices and pairs that the text lists


@dataclass(frozen=True, slots=True)
class Speed:
    """Latency of the graph for one image, median in milliseconds; images per second of the pass, decoding included."""

    latency_ms: float
    images_per_second: float
    megabytes: float  # of the graph, weights included


@dataclass(frozen=True)
class Report:
    """Results of a model on labeled images, and reasons; printed, a summary, and in a notebook the page.

    `page` is a self-contained HTML page. Rows are those of `images`.
    """

    model: str
    source: str
    split: str
    labels: tuple[str, ...]
    images: Images = field(repr=False)
    metrics: Metrics
    trained_on: int | None  # images that the model was trained on; None if that is not known
    nearest_mean: float | None  # accuracy of the nearest class mean; None without the training images
    findings: tuple[Finding, ...]
    slices: tuple[Slice, ...]
    pairs: tuple[Pair, ...]
    mistakes: tuple[int, ...]
    doubts: Doubts | None
    selective: Selective
    coverage: tuple[Achieved, ...]  # of sets of labels; empty if the graph has no thresholds
    speed: Speed
    comparison: Comparison | None
    rejected: Mapping[str, str]
    skipped: Mapping[str, str]
    other_splits: int
    facts: Mapping[str, str] = field(repr=False)  # metadata of the graph
    page: str = field(default="", repr=False)

    @property
    def files(self) -> FileCounts:
        """All files of the source, counted."""
        return FileCounts.of(self.metrics.images, self.rejected, self.skipped, self.other_splits)

    @property
    def next_step(self) -> str:
        """Remedy of the most urgent finding."""
        return next_step(self.findings, self.metrics)

    def __repr__(self) -> str:
        lines = [f"{self.model} on {counted(self.metrics.images, 'image')} ({self.split})"]
        lines += metric_lines(self.metrics)
        if self.nearest_mean is not None:
            lines.append(f"nearest class mean {self.nearest_mean:.1%}")
        lines += ["findings:", *(f"  {each}" for each in self.findings)] if self.findings else []
        if self.comparison is not None:
            lines.append(self.comparison.summary())
        return "\n".join([*lines, f"what to do next: {self.next_step}"])

    def _repr_html_(self) -> str:
        return pages.frame(self.page, scripts=True)

    def to_json(self) -> dict[str, Any]:
        """Return everything but arrays and the page, as JSON values."""
        names = [sample.name for sample in self.images.samples]
        other = self.comparison
        return {
            "model": self.model,
            "source": self.source,
            "split": self.split,
            "labels": list(self.labels),
            **self.metrics.to_json(),
            "trained_on": self.trained_on,
            "nearest_mean": self.nearest_mean,
            "findings": [asdict(each) for each in self.findings],
            "next_step": self.next_step,
            "slices": [{**asdict(each), "worse": each.worse} for each in self.slices],
            "pairs": [
                {
                    "true": self.labels[each.true],
                    "predicted": self.labels[each.predicted],
                    "images": each.images,
                    "of": each.of,
                    "examples": [names[row] for row in each.rows],
                }
                for each in self.pairs
            ],
            "mistakes": [
                {
                    "name": names[row],
                    "true": self.labels[self.images.truth[row]],
                    "predicted": self.labels[self.images.predicted[row]],
                    "probability": float(self.images.confidence[row]),
                }
                for row in self.mistakes
            ],
            "doubtful_labels": self._doubtful(names),
            "coverage": [asdict(each) for each in self.coverage],
            "thresholds": [asdict(each) for each in self.selective.thresholds],
            "speed": asdict(self.speed),
            "against": None if other is None else _comparison_facts(other, self.labels, names),
            "rejected": dict(self.rejected),
            "skipped": dict(self.skipped),
            "files": asdict(self.files),
        }

    def _doubtful(self, names: Sequence[str]) -> dict[str, Any] | None:
        if self.doubts is None:
            return None
        likely = {names[row]: self.labels[label] for row, label in self.doubts.likely.items()}
        return {"judged": self.doubts.judged, "doubtful": self.doubts.doubtful, "likely": likely}

    def save(self, file: Path) -> Path | None:
        """Write the page, and beside it the predictions; return their place, None if pyarrow is not installed."""
        place = predictions.beside(file) if predictions.can_write() else None
        if place is not None:
            predictions.write(place, self.images, self.labels, self.facts)
        pages.write(file, self.page)
        return place


def _comparison_facts(other: Comparison, labels: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    return {
        "model": other.model,
        **other.metrics.to_json(),
        "fixed": other.fixed_images,
        "broken": other.broken_images,
        "p": other.p,
        "interval": list(other.interval),
        "recalls": {labels[each]: recall for each, recall in other.recalls.items()},
        "fixed_examples": [names[row] for row in other.fixed],
        "broken_examples": [names[row] for row in other.broken],
    }


def report(
    model: Model,
    source: Path,
    *,
    against: Model | None = None,
    split: str | None = None,
    pictures: bool = True,
    progress: Progress = silent,
) -> Report:
    """Return the report on a model: its outputs on labeled images, and what they have in common where it is wrong.

    Without `pictures` the page holds none, for private data.
    """
    chosen, samples, dataset = select_samples(source, model.labels, split)
    images = pass_over(model, samples, progress("images", len(samples)))
    metrics = score(images.probabilities, images.truth)
    reference = training_images(model, progress)
    wrong = mistakes(images)
    distances = None if reference is None else reference.distances(images.features)
    result = Report(
        model=model.name,
        source=source.name or "photos",
        split=chosen,
        labels=model.labels,
        images=images,
        metrics=metrics,
        trained_on=None if model.bundle is None else count_trained_on(model.bundle, images.sha256),
        nearest_mean=None if reference is None else reference.nearest_mean(images.features, images.truth),
        findings=(),
        slices=tuple(slices(images, model.labels, distances, _columns(source))),
        pairs=tuple(pairs(images, metrics.confusion)),
        mistakes=tuple(wrong),
        doubts=doubts(images, wrong, len(model.labels)),
        selective=selective(images),
        coverage=_coverage(model, images),
        speed=_speed(model, images),
        comparison=None if against is None else compare(images, model.labels, against, progress),
        rejected=images.rejected,
        skipped=dataset.skipped,
        other_splits=len(dataset.samples) - len(samples),
        facts={**model.session.metadata, metadata.LABELS: metadata.labels_json(model.labels)},
    )
    result = replace(result, findings=tuple(findings(result)))
    return replace(result, page=page(result, model, reference, pictures))


def _columns(source: Path) -> dict[str, dict[str, str]]:
    return table.further_columns(source) if source.is_file() else {}


def _coverage(model: Model, images: Images) -> tuple[Achieved, ...]:
    if metadata.COVERAGE not in model.session.metadata:
        return ()
    return tuple(achieved(model.thresholds(), images.probabilities, images.truth))


def _speed(model: Model, images: Images) -> Speed:
    """Measure the graph on one black image, on what the model was opened for."""
    size = model.preprocessing.size
    black: NDArray[np.uint8] = np.zeros((1, size, size, 3), np.uint8)
    times = []
    for _ in range(WARM_UP + RUNS):
        started = time.perf_counter()
        model.session.run(black, [PROBABILITIES])
        times.append(time.perf_counter() - started)
    files = [model.file] if model.file.is_file() else [each for each in model.file.rglob("*") if each.is_file()]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    total = len(images.samples) + len(images.rejected)
    return Speed(1000 * float(np.median(times[WARM_UP:])), total / images.seconds, megabytes)
