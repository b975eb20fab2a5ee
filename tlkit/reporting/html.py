"""The page of a report: every list is capped, so that it does not grow with the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.data.decoding import UnreadableImage
from tlkit.data.preprocessing import load
from tlkit.pages import html, svg
from tlkit.pages.html import text
from tlkit.pages.layouts import drawn, layouts
from tlkit.reporting import figures
from tlkit.reporting.confusions import Comparison, ordered
from tlkit.runtime.evidence import LEFT_OUT, Evidence, overlay
from tlkit.runtime.model import Model
from tlkit.runtime.reference import Reference
from tlkit.util.text import counted, span

if TYPE_CHECKING:
    from tlkit.reporting.run import Report

PICTURE, NEAR, SMALL, DOT = 144, 64, 72, 48  # sides of pictures in pixels
MAX_DOTS = 400  # of the map that have a picture
MAX_SLICES, MAX_CLASSES = 24, 20
QUALITY = 60  # of pictures in the map


class _Page:
    """Report, model and training images, which the sections of one page share."""

    def __init__(self, report: Report, model: Model, reference: Reference | None, pictures: bool) -> None:
        self.report, self.model, self.reference, self.pictures = report, model, reference, pictures
        self.images, self.labels = report.images, report.labels

    def name(self, row: int) -> str:
        """Return the name of an image as it is shown."""
        return html.short(self.images.samples[row].name)

    def picture(self, row: int, size: int) -> str:
        """Return a picture of an image, if pictures are wanted."""
        return self.file(self.images.samples[row].path, self.name(row), size)

    def file(self, path: Path, name: str, size: int) -> str:
        source = svg.thumbnail(path, size) if self.pictures else None
        return "" if source is None else html.image(source, name, size)

    def predicted(self, row: int) -> str:
        """Return what an image is and was predicted as."""
        true, other = (self.labels[each] for each in (self.images.truth[row], self.images.predicted[row]))
        return f"{true} predicted as {other}, {self.images.confidence[row]:.1%}"


def page(report: Report, model: Model, reference: Reference | None, pictures: bool) -> str:
    """Return the page, with pictures of the images if they are wanted."""
    made = _Page(report, model, reference, pictures)
    title = f"Report: {report.model} on {report.source}"
    sections = [_verdict(report), *_classes(made), *_mistakes(made), *_confidence(report), *_slices(report)]
    sections += [*_map(), *_comparison(made), *_speed(report)]
    return html.document(title, "\n".join(sections), "report", data=_map_data(made))


def _verdict(report: Report) -> str:
    metrics = report.metrics
    images = f"{counted(metrics.images, 'image')} of {counted(len(report.labels), 'class', 'classes')} ({report.split})"
    details = [
        f"balanced accuracy {metrics.balanced_accuracy:.1%} (95 %: {span(metrics.balanced_interval)})",
        f"macro-F1 {metrics.macro_f1:.3f}",
        f"expected calibration error {metrics.ece:.3f}, log loss {metrics.log_loss:.3f}",
        f"baselines: most frequent class {metrics.majority:.1%}, nearest class mean "
        + ("unknown without the training images" if report.nearest_mean is None else f"{report.nearest_mean:.1%}"),
    ]
    if report.comparison is not None:
        details.append(report.comparison.summary())
    listed = "".join(f"<li>{text(each)}</li>" for each in details)
    found = "".join(f'<li class="{each.kind}"><b>{text(each.what)}</b>{text(each.do)}</li>' for each in report.findings)
    urgent = any(each.kind != "confusion" for each in report.findings)
    return (
        f'<section class="verdict {"inconclusive" if urgent else ""}">'
        f'<p class="what">Accuracy {metrics.accuracy:.1%} (95 %: {span(metrics.interval)}) on {images}</p>'
        f"<ul>{listed}</ul>{found and f'<ul class={chr(34)}findings{chr(34)}>{found}</ul>'}"
        f"<p>What to do next: {text(report.next_step)}.</p></section>"
    )


def _classes(made: _Page) -> Iterator[str]:
    report = made.report
    classes = ordered(report.metrics.confusion)
    yield "<h2>Classes and confusions</h2>"
    if len(classes) < len(report.labels):
        yield f"<p>The {len(classes)} classes with the most mistakes, of {len(report.labels):,}.</p>"
    drawing = figures.matrix(report.metrics.confusion, classes, report.labels)
    yield f'<div class="wide scroll">{drawing}</div>'
    for pair in report.pairs:
        names = f"{report.labels[pair.true]} predicted as {report.labels[pair.predicted]}"
        shown = "".join(made.picture(row, SMALL) for row in pair.rows)
        yield f'<div class="pair"><p>{text(names)}: {pair.images} of {pair.of}</p>{shown}</div>'


def _mistakes(made: _Page) -> Iterator[str]:
    rows = made.report.mistakes
    yield "<h2>The most confident mistakes</h2>"
    if not rows:
        yield "<p>None.</p>"
        return
    heat, method = _evidence(made, rows)
    if heat:
        how = method if method == LEFT_OUT else f"{method} (its features are no mean over positions)"
        yield f"<p>Evidence for the predicted class, in color: {text(how)}.</p>"
    yield f'<div class="mistakes">{"".join(_mistake(made, row, heat.get(row, "")) for row in rows)}</div>'


def _evidence(made: _Page, rows: Sequence[int]) -> tuple[dict[int, str], str]:
    """Return pictures with the evidence for the predicted class by row, and how it was found."""
    if not made.pictures:
        return {}, ""
    seen: dict[int, Any] = {}
    for row in rows:
        try:
            seen[row] = load(made.images.samples[row].path, made.model.preprocessing)
        except UnreadableImage:  # gone since
            continue
    if not seen:
        return {}, ""
    with Evidence.of(made.model) as evidence:
        maps = evidence.maps(np.stack(list(seen.values())), [int(made.images.predicted[row]) for row in seen])
    drawings = {
        row: overlay(svg.resized(image, PICTURE), each) for (row, image), each in zip(seen.items(), maps, strict=True)
    }
    shown = {
        row: html.image(svg.picture(each), f"evidence: {made.name(row)}", PICTURE) for row, each in drawings.items()
    }
    return shown, evidence.method


def _mistake(made: _Page, row: int, heat: str) -> str:
    doubted = None if made.report.doubts is None else made.report.doubts.likely.get(row)
    doubt = f"the label is doubtful: likely {made.labels[doubted]}" if doubted is not None else ""
    near = [] if made.reference is None else made.reference.nearest(made.images.features[row])
    names = ", ".join(made.labels[sample.label] for sample in near)
    pictures = "".join(made.file(sample.path, f"{sample.name} ({made.labels[sample.label]})", NEAR) for sample in near)
    return (
        f'<figure class="mistake"><figcaption>{text(made.predicted(row))}<small>{text(made.name(row))}</small>'
        f"{doubt and f'<span class=doubt>{text(doubt)}</span>'}</figcaption>{made.picture(row, PICTURE)}{heat}"
        f"{(near and f'<small>nearest training images: {text(names)}</small>') or ''}{pictures}</figure>"
    )


def _confidence(report: Report) -> Iterator[str]:
    yield "<h2>Confidence</h2>"
    yield (
        f'<div class="side"><figure><h3>Reliability</h3>{figures.reliability(report.metrics)}</figure>'
        f"<figure><h3>Accuracy against coverage</h3>{figures.coverage(report.selective)}</figure></div>"
    )
    rows = []
    for each in report.selective.thresholds:
        known = each.confidence is not None
        reached = [f"{each.confidence:.3f}", f"{each.coverage:.1%}", span(each.reached)] if known else []
        rows.append([f"{each.accuracy:.0%}", *(reached or ["none reaches it", "", ""])])
    columns = ["accuracy that is wished for", "accept from probability", "of the images", "95 % of the accuracy"]
    yield html.table(columns, rows)
    if report.coverage:
        sets = [
            [f"{each.coverage:.0%}", f"{each.achieved:.1%}", span(each.interval), f"{each.set_size:.2f}"]
            for each in report.coverage
        ]
        yield "<h3>Sets of labels</h3>"
        yield html.table(["coverage that is wished for", "achieved", "95 %", "labels in a set"], sets)


def _slices(report: Report) -> Iterator[str]:
    yield "<h2>Slices</h2>"
    shown = report.slices[:MAX_SLICES]
    looked = f"{counted(len(report.slices), 'slice')} looked at"
    yield f"<p>{looked}; the difference to all other images has a 95 % interval corrected for their number.</p>"
    rows = []
    for each in shown:
        span = f"{each.low:+.1%} to {each.high:+.1%}"
        name, accuracy = f"{each.name}: {each.value}", f"{each.accuracy:.1%}"
        rows.append([name, f"{each.images:,}", accuracy, f"{each.difference:+.1%}", span])
    worse = [number for number, each in enumerate(shown) if each.worse]
    yield html.table(["slice", "images", "accuracy", "difference", "interval"], rows, worse, "worse")


def _map() -> Iterator[str]:
    yield "<h2>The images by their features</h2>"
    yield (
        '<div class="tools"><label>Map <select id="method"></select></label><label>Class <select id="class">'
        '<option value="">all</option></select></label><label>Show <select id="which"><option value="">all</option>'
        '<option value="right">right</option><option value="wrong">wrong</option></select></label></div>'
        '<p id="count" role="status"></p><div id="map"><div id="tip" hidden></div></div>'
    )


def _map_data(made: _Page) -> dict[str, Any]:
    """Return the points of the map, a part of the images, and their places by each method."""
    images = made.images
    rows = drawn(images.truth, ~images.correct)
    found = list(layouts(images.features[rows]))
    with_picture = set(rows[np.argsort(images.correct[rows], kind="stable")][:MAX_DOTS].tolist())
    points = []
    for row in rows.tolist():
        point: dict[str, Any] = {"n": made.name(row), "t": int(images.truth[row]), "p": int(images.predicted[row])}
        point |= {"c": round(float(images.confidence[row]), 4), "ok": bool(images.correct[row])}
        if made.pictures and row in with_picture:
            point["i"] = svg.thumbnail(images.samples[row].path, DOT, QUALITY)
        points.append(point)
    named = sorted({each for point in points for each in (point["t"], point["p"])})
    number = {label: index for index, label in enumerate(named)}  # only classes that the map needs
    for point in points:
        point["t"], point["p"] = number[point["t"]], number[point["p"]]
    return {
        "labels": [made.labels[each][: html.MAX_NAME] for each in named],
        "colors": svg.colors(len(named)),
        "shown": sorted({point["t"] for point in points}),
        "points": points,
        "layouts": [
            {"method": each.method, "trust": each.trustworthiness, "places": np.round(each.places, 4).tolist()}
            for each in found
        ],
    }


def _comparison(made: _Page) -> Iterator[str]:
    other = made.report.comparison
    if other is None:
        return
    yield f"<h2>Against {text(other.model)}</h2><p>{text(other.summary())}</p>"
    yield from _changed(made, other, "Fixed: right only there", other.fixed, other.fixed_images)
    yield from _changed(made, other, "Broken: right only here", other.broken, other.broken_images)
    own = made.report.metrics.recall
    differences = sorted((recall - (own[label] or 0.0), label) for label, recall in other.recalls.items())
    changed = [(change, label) for change, label in differences if change]
    most = sorted(changed, key=lambda each: -abs(each[0]))[:MAX_CLASSES]
    rows = [
        [made.labels[label], f"{own[label] or 0.0:.1%}", f"{other.recalls[label]:.1%}", f"{change:+.1%}"]
        for change, label in sorted(most)
    ]
    if rows:
        yield html.table(["class", "recall", f"recall of {other.model}", "difference"], rows)


def _changed(made: _Page, other: Comparison, title: str, rows: Sequence[int], count: int) -> Iterator[str]:
    yield f"<h3>{title} ({count})</h3>"
    for row in rows:
        true, here, there = (
            made.labels[each[row]] for each in (made.images.truth, made.images.predicted, other.predicted)
        )
        caption = f"{made.name(row)}: {true}, here {here}, there {there}"
        yield f'<figure class="finding">{made.picture(row, SMALL)}<figcaption>{text(caption)}</figcaption></figure>'


def _speed(report: Report) -> Iterator[str]:
    speed = report.speed
    yield "<h2>Latency and size</h2>"
    yield (
        f"<p>{speed.latency_ms:.1f} ms for one image, {speed.images_per_second:.0f} images per second from files, "
        f"{speed.megabytes:.1f} MB. tlkit bench measures more.</p>"
    )
