"""Findings of a report, the most urgent first, each with the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tlkit.audit.fingerprints import Fingerprint
from tlkit.audit.shortcuts import shortcuts
from tlkit.evaluation.metrics import Metrics
from tlkit.reporting.images import Images
from tlkit.reporting.selective import overconfidence
from tlkit.reporting.slices import Slice
from tlkit.util.text import counted

if TYPE_CHECKING:
    from tlkit.reporting.run import Report

MAX_SLICES = 3
MIN_DOUBTFUL = 0.01  # share of labels
MIN_OVERCONFIDENCE = 0.03  # of the mean probability, from the accuracy

Kind = Literal["leakage", "labels", "shortcut", "slice", "calibration", "baseline", "confusion"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that stands out, and the remedy."""

    kind: Kind
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.what}; {self.do}"


def findings(report: Report) -> list[Finding]:
    """Return all findings about the figures of a report, the most urgent first."""
    images, metrics, labels, doubts = report.images, report.metrics, report.labels, report.doubts
    found: list[Finding] = []
    if report.trained_on:
        what = f"the model was trained on {report.trained_on} of these {metrics.images} images"
        found.append(Finding("leakage", what, "measure on images that it has not seen"))
    if doubts is not None and doubts.doubtful >= max(2, MIN_DOUBTFUL * doubts.judged):
        share = f"{doubts.doubtful} of {doubts.judged} labels look wrong ({doubts.doubtful / doubts.judged:.1%})"
        found.append(Finding("labels", share, "look at the marked mistakes below, and correct them first"))
    files = [Fingerprint("", header, images.features[0][:0]) for header in images.headers]  # not how images look
    for shortcut in shortcuts(files, images.truth, labels, 0):
        do = "the model may look at that instead of the content: save all images in the same way, and train again"
        found.append(Finding("shortcut", f"possible shortcut: {shortcut}", do))
    found += _weak(report.slices)
    found += _against_baselines(metrics, report.nearest_mean)
    found += _calibration(images, metrics)
    if report.pairs and not found:
        pair = report.pairs[0]
        what = f"most often {labels[pair.true]} is predicted as {labels[pair.predicted]}: {pair.images} of {pair.of}"
        found.append(Finding("confusion", what, "add training images of the two, or look whether they differ at all"))
    return found


def _weak(slices: Sequence[Slice]) -> Iterator[Finding]:
    """Yield the slices that are worse for certain, one of each property: its neighbors say the same."""
    names = set[str]()
    for each in (each for each in slices if each.worse):
        if each.name not in names and len(names) < MAX_SLICES:
            names.add(each.name)
            what = f"{each}, {-each.difference:.1%} below the other images"
            do = "add training images like them" if each.name != "class" else "add training images of it"
            yield Finding("slice", what, do)


def _against_baselines(metrics: Metrics, nearest_mean: float | None) -> Iterator[Finding]:
    if metrics.interval[0] <= metrics.majority:
        what = f"no better than always predicting the most frequent class ({metrics.majority:.1%})"
        yield Finding("baseline", what, "do not deploy it: check the labels, then try tlkit advise")
    if nearest_mean is not None and nearest_mean > metrics.interval[1]:
        what = f"the nearest class mean of the same features is better ({nearest_mean:.1%})"
        yield Finding("baseline", what, "train again with another head")


def _calibration(images: Images, metrics: Metrics) -> Iterator[Finding]:
    excess, error = overconfidence(images)
    if abs(excess) > max(MIN_OVERCONFIDENCE, 3 * error):
        word = "too sure" if excess > 0 else "too cautious"
        what = f"{word}: mean probability {metrics.accuracy + excess:.1%}, accuracy {metrics.accuracy:.1%}"
        yield Finding("calibration", what, "read thresholds from the reliability diagram, not from the probability")


def next_step(found: Sequence[Finding], metrics: Metrics) -> str:
    """Return what to do next."""
    if found:
        return found[0].do
    images = counted(metrics.images, "image")
    return f"nothing stands out in {images}: deploy it, and report on more of them as they come"
