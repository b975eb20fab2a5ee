"""Figures of the advice as SVG: accuracy and domain shift over depth, and maps of the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlkit.advice.backbone_analysis import BackboneAnalysis, stratified
from tlkit.pages import svg
from tlkit.pages.layouts import Layout, layouts
from tlkit.util.statistics import power_normalize

if TYPE_CHECKING:
    from tlkit.advice.run import Advice

MAX_POINTS, MAX_THUMBNAILS = 800, 60
MAPS = 2  # principal components and t-SNE: UMAP takes seconds to import
# Of the figure over depth, in pixels: margins, width, heights of its two parts, and the gap between them.
LEFT, TOP, WIDTH, HEIGHT, GAP, SHIFT_HEIGHT = 64, 14, 560, 220, 26, 100
SIDE, THUMBNAIL = 460, 30  # of a map, and of a thumbnail in it


def depth(analysis: BackboneAnalysis, chosen: str | None) -> str:
    """Return accuracies of probe (with interval) and nearest mean per stage, above the shift; `chosen` is marked."""
    names = [stage.name for stage in analysis.stages]
    places = [LEFT + WIDTH * (number + 0.5) / len(names) for number in range(len(names))]
    top = TOP + HEIGHT + GAP
    bottom = top + SHIFT_HEIGHT if analysis.shift.stages else TOP + HEIGHT
    parts = [*_accuracies(analysis, places)]
    if analysis.shift.stages:
        parts += _shifts(analysis, places, top)
    for name, x in zip(names, places, strict=True):
        mark = ' class="marked"' if name == chosen else ""
        parts.append(f'<text{mark} x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{escape(name)}</text>')
    label = "last stage that is kept, from shallow to deep"
    parts.append(f'<text x="{LEFT + WIDTH / 2:.0f}" y="{bottom + 44:.0f}" text-anchor="middle">{label}</text>')
    best = max(analysis.stages, key=lambda stage: stage.probe.balanced_accuracy)
    accuracy = f"{best.probe.balanced_accuracy:.1%}"
    title = f"{analysis.backbone.name}: the probe is most accurate at {best.name}, with {accuracy}"
    return svg.svg(LEFT + WIDTH + 16, bottom + 54, title, parts)


def _accuracies(analysis: BackboneAnalysis, places: Sequence[float]) -> Iterator[str]:
    def height(share: float) -> float:
        return TOP + HEIGHT * (1 - share)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield from _gridline(height(share), f"{share:.0%}")
    yield _axis(TOP + HEIGHT / 2, "leave-one-out balanced accuracy")
    means = [stage.nearest_mean.balanced_accuracy for stage in analysis.stages]
    nearest = [(x, height(mean)) for x, mean in zip(places, means, strict=True)]
    yield f'<polyline class="second" points="{_points(nearest)}"/>'
    probes = [(x, height(stage.probe.balanced_accuracy)) for x, stage in zip(places, analysis.stages, strict=True)]
    yield f'<polyline class="first" points="{_points(probes)}"/>'
    for (x, y), (_, other), stage in zip(probes, nearest, analysis.stages, strict=True):
        low, high = stage.probe.interval
        span = f"M{x:.1f} {height(low):.1f}V{height(high):.1f}"
        caps = "".join(f"M{x - 4:.1f} {height(end):.1f}h8" for end in (low, high))
        title = f"{stage.name}: probe {stage.probe.balanced_accuracy:.1%} ({low:.1%} to {high:.1%})"
        yield f'<path class="first" d="{span}{caps}"/>'
        yield f'<circle class="second" cx="{x:.1f}" cy="{other:.1f}" r="3"/>'
        yield f'<circle class="first" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(title)}</title></circle>'


def _shifts(analysis: BackboneAnalysis, places: Sequence[float], top: int) -> Iterator[str]:
    shifts = [analysis.shift.stages.get(stage.name) for stage in analysis.stages]
    most = max([0.3, *(value for value in shifts if value is not None)])
    for share in (0.0, 0.5, 1.0):
        yield from _gridline(top + SHIFT_HEIGHT * (1 - share), f"{share * most:.2f}")
    yield _axis(top + SHIFT_HEIGHT / 2, "shift, nats")
    for x, value, stage in zip(places, shifts, analysis.stages, strict=True):
        if value is not None:
            high = max(1.0, SHIFT_HEIGHT * value / most)
            box = f'x="{x - 13:.1f}" y="{top + SHIFT_HEIGHT - high:.1f}" width="26" height="{high:.1f}"'
            yield f'<rect class="third" {box}><title>{escape(stage.name)}: shift {value:.3f}</title></rect>'


def maps(advice: Advice, seed: int = 0) -> Iterator[tuple[Layout, str]]:
    """Yield maps of the training images by their features at the recommended cut, each with its SVG."""
    rows = stratified(advice.labels, advice.analysis.features.usable, MAX_POINTS, seed)
    features = power_normalize(advice.analysis.features.at(advice.recommendation.cut, rows))
    for layout in islice(layouts(features.astype(np.float32), seed), MAPS):
        yield layout, _map(advice, rows, layout)


def _map(advice: Advice, rows: NDArray[np.int64], layout: Layout) -> str:
    places = THUMBNAIL + (SIDE - 2 * THUMBNAIL) * layout.places
    places[:, 1] = SIDE - places[:, 1]
    samples, labels = advice.dataset.of("train"), advice.dataset.labels
    color = svg.colors(len(labels))
    parts = [f'<rect class="frame" x="0.5" y="0.5" width="{SIDE - 1}" height="{SIDE - 1}"/>']
    shown = 0
    # Thumbnails are drawn last, on top.
    for number in reversed(range(len(rows))):
        sample, (x, y) = samples[rows[number]], places[number]
        title = f"<title>{escape(f'{sample.name} ({labels[sample.label]})')}</title>"
        picture = svg.thumbnail(sample.path, 2 * THUMBNAIL) if number < MAX_THUMBNAILS else None
        if picture is None:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color[sample.label]}">{title}</circle>')
            continue
        shown += 1
        box = f'x="{x - THUMBNAIL / 2:.1f}" y="{y - THUMBNAIL / 2:.1f}" width="{THUMBNAIL}" height="{THUMBNAIL}"'
        parts.append(
            f'<g>{title}<image {box} href="{picture}"/>'
            f'<rect {box} fill="none" stroke="{color[sample.label]}" stroke-width="2.5"/></g>'
        )
    title = f"{len(rows)} images by {layout.method} of their features, colored by class, {shown} of them as thumbnails"
    return svg.svg(SIDE, SIDE, title, parts)


def _gridline(y: float, label: str) -> Iterator[str]:
    yield f'<path class="grid" d="M{LEFT} {y:.1f}h{WIDTH}"/>'
    yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


def _axis(y: float, label: str) -> str:
    return f'<text transform="translate(14 {y:.0f}) rotate(-90)" text-anchor="middle">{label}</text>'


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
