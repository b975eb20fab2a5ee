"""Suggestions of what to label next: the order of the work, top to bottom, and its result."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlkit.data.dataset import Sample
from tlkit.data.scan import FileCounts
from tlkit.errors import UsageError
from tlkit.evaluation.evaluate import run_samples
from tlkit.graph import metadata
from tlkit.pages.html import frame
from tlkit.plugin.contract import FEATURES, PROBABILITIES, Progress, silent
from tlkit.plugin.detection import NOVELTY
from tlkit.runtime.model import Model
from tlkit.runtime.reference import training_images
from tlkit.suggesting.page import page
from tlkit.suggesting.selection import choose, margins, uncertainty
from tlkit.util.files import atomic_file, check_own
from tlkit.util.statistics import unit
from tlkit.util.text import counted

UNLABELED = -1  # the label of an image that has none
SHOWN = 10  # suggestions that the text lists
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # names may be any bytes
UNCERTAIN = 0.25  # share of the images that are called uncertain
COLUMNS = (
    *("path", "label", "why", "predicted", "probability", "second"),
    *("margin", "novelty", "distance", "similar"),
)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """An image to label, and why; `distance` is that to the labelled images and those suggested before it.

    `similar` of the images are most like this one of the suggested, itself among them.
    """

    path: Path
    why: str
    predicted: str
    probability: float
    second: str
    margin: float
    novelty: float | None
    distance: float
    similar: int


@dataclass(frozen=True)
class Suggestions:
    """Images to label next, the most useful first; printed, a summary, and in a notebook the page."""

    model: str
    suggestions: tuple[Suggestion, ...]
    images: int
    compared: int  # training images that distances are to; 0 if they are not on this machine
    rejected: Mapping[str, str]
    skipped: Mapping[str, str]
    page: str = field(default="", repr=False)

    @property
    def files(self) -> FileCounts:
        """All files that were named, counted."""
        return FileCounts.of(self.images, self.rejected, self.skipped)

    def __repr__(self) -> str:
        lines = [f"{counted(len(self.suggestions), 'image')} to label, of {self.images:,}"]
        lines += [f"{each.path}: {each.why}" for each in self.suggestions[:SHOWN]]
        more = len(self.suggestions) - SHOWN
        return "\n".join([*lines, f"and {more:,} more"] if more > 0 else lines)

    def _repr_html_(self) -> str:
        return frame(self.page)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the page, as JSON values."""
        rows = [{**asdict(each), "path": str(each.path)} for each in self.suggestions]
        facts = {"model": self.model, "images": self.images, "compared": self.compared, "suggestions": rows}
        return {**facts, "rejected": dict(self.rejected), "skipped": dict(self.skipped), "files": asdict(self.files)}

    def save(self, file: Path) -> None:
        """Write a table with an empty column for the labels; paths are relative to its folder."""
        with atomic_file(file, check=check) as temporary, temporary.open("w", **TEXT) as lines:
            writer = csv.writer(lines)
            writer.writerow(COLUMNS)
            for each in self.suggestions:
                facts = asdict(each) | {"path": _relative(each.path, file.parent), "label": ""}
                writer.writerow([_cell(facts[column]) for column in COLUMNS])


def check(file: Path) -> None:
    """Refuse, before any work, a table that could not be written, or would replace another's or labels."""
    if file.suffix.lower() != ".csv":
        raise UsageError("not a CSV file", file=file, do="end its name in .csv")
    check_own(file, _is_unlabeled)


def _is_unlabeled(file: Path) -> bool:
    try:
        with file.open(**TEXT) as lines:
            rows = csv.DictReader(lines)
            return tuple(rows.fieldnames or ()) == COLUMNS and not any(row["label"] for row in rows)
    except csv.Error:
        return False


def suggest(model: Model, files: Sequence[Path], count: int, progress: Progress = silent) -> Suggestions:
    """Return which of some images to label next: those that stand for most of what a model is uncertain of.

    They are compared with the images that the model was trained on as well, if these are on this machine.
    """
    outputs = [FEATURES, PROBABILITIES, *({NOVELTY} & {*model.session.outputs})]
    samples = [Sample(file, str(file), UNLABELED, "") for file in files]
    seen = run_samples(model, samples, progress("images", len(files)), outputs)
    probabilities, novelties = seen.arrays[PROBABILITIES], seen.arrays.get(NOVELTY)
    reference = training_images(model, progress)
    features = unit(seen.arrays[FEATURES])
    margin = margins(probabilities, model.session.metadata.get(metadata.ACTIVATION, metadata.SOFTMAX))
    limit = model.novelty_threshold
    unknown = None if limit is None or novelties is None else novelties > limit
    nearest = None if reference is None else reference.distances(features)
    chosen = choose(features, uncertainty(margin, unknown), nearest, count)
    order = np.argsort(-probabilities[chosen.rows], axis=1, kind="stable")
    found = []
    for number, row in enumerate(chosen.rows.tolist()):
        first, second = order[number, 0], order[number, min(1, order.shape[1] - 1)]
        each = Suggestion(
            path=seen.samples[row].path,
            why="",
            predicted=model.labels[first],
            probability=float(probabilities[row, first]),
            second=model.labels[second],
            margin=float(margin[row]),
            novelty=None if novelties is None else float(novelties[row]),
            distance=float(chosen.distances[number]),
            similar=int(chosen.similar[number]),
        )
        is_unknown = unknown is not None and bool(unknown[row])
        less_sure = float((margin < margin[row]).mean())
        found.append(replace(each, why=_why(each, is_unknown, less_sure, float(probabilities[row, second]))))
    result = Suggestions(
        model=model.name,
        suggestions=tuple(found),
        images=len(seen.samples),
        compared=0 if reference is None else len(reference.samples),
        rejected=seen.rejected,
        skipped={},
    )
    return replace(result, page=page(result))


def _why(each: Suggestion, unknown: bool, less_sure: float, runner_up: float) -> str:
    """Return the reason; `less_sure` is the share of the images that the model is less sure of."""
    if unknown:
        reason = f"of no known class (novelty {each.novelty:.2f})"
    elif less_sure < UNCERTAIN:
        reason = f"{each.predicted} ({each.probability:.0%}) or {each.second} ({runner_up:.0%})"
    else:
        reason = f"far from what is labelled or listed above it (distance {each.distance:.2f})"
    more = each.similar - 1
    return f"{reason}; stands for {counted(more, 'similar image')}" if more else reason


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive
        return str(path.absolute())


def _cell(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
