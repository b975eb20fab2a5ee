"""The advice as pictures, SVG each, in the page's own colours: accuracy and shift against depth, maps of the images."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tlkit.advice.analysis import Sight, draw
from tlkit.advice.run import Advice
from tlkit.data.preprocessing import UnreadableImage, load
from tlkit.plugin.contract import Preprocessing
from tlkit.util.statistics import power_normalize

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_POINTS, MOST_THUMBNAILS, FEWEST_POINTS = 800, 60, 10
COMPONENTS = 50  # that t-SNE starts from, as its authors do
LEFT, TOP, WIDE, HIGH, GAP, LOW = (
    64,
    14,
    560,
    220,
    26,
    100,
)  # of the picture of depth: its two parts and what is between
SIDE, THUMBNAIL = 460, 30  # of a map, and of what is shown in it
# Told apart by most who see colours differently (Okabe and Ito 2008), and on light and dark alike.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c7a00", "#7a5fb0")


@dataclass(frozen=True, slots=True)
class Map:
    """One map: what it is, what its axes mean, and the SVG."""

    title: str
    axes: str
    svg: str


def depth(sight: Sight, chosen: str | None) -> str:
    """Above, the probe's accuracy with its interval and the nearest class mean's; below, the shift; stage by stage."""
    names = [stage.name for stage in sight.stages]
    places = [LEFT + WIDE * (number + 0.5) / len(names) for number in range(len(names))]
    under = TOP + HIGH + GAP
    bottom = under + LOW if sight.shift.stages else TOP + HIGH
    parts = [*_accuracies(sight, places)]
    if sight.shift.stages:
        parts += _shifts(sight, places, under)
    for name, place in zip(names, places, strict=True):
        mark = ' class="marked"' if name == chosen else ""
        parts.append(f'<text{mark} x="{place:.1f}" y="{bottom + 20}" text-anchor="middle">{escape(name)}</text>')
    parts.append(_text(LEFT + WIDE / 2, bottom + 44, "last stage that is kept, from shallow to deep"))
    best = max(sight.stages, key=lambda stage: stage.probe.accuracy)
    said = f"{sight.backbone.name}: the probe is most accurate at {best.name}, with {best.probe.accuracy:.1%}"
    return _svg(LEFT + WIDE + 16, bottom + 54, said, parts)


def _accuracies(sight: Sight, places: Sequence[float]) -> Iterator[str]:
    def height(share: float) -> float:
        return TOP + HIGH * (1 - share)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield from _line(height(share), f"{share:.0%}")
    yield _upright(TOP + HIGH / 2, "left-out accuracy")
    nearest = [(x, height(stage.nearest.accuracy)) for x, stage in zip(places, sight.stages, strict=True)]
    yield f'<polyline class="second" points="{_points(nearest)}"/>'
    probes = [(x, height(stage.probe.accuracy)) for x, stage in zip(places, sight.stages, strict=True)]
    yield f'<polyline class="first" points="{_points(probes)}"/>'
    for (x, y), (_, other), stage in zip(probes, nearest, sight.stages, strict=True):
        low, high = stage.probe.interval
        span = f"M{x:.1f} {height(low):.1f}V{height(high):.1f}"
        caps = "".join(f"M{x - 4:.1f} {height(end):.1f}h8" for end in (low, high))
        told = f"{stage.name}: probe {stage.probe.accuracy:.1%} ({low:.1%} to {high:.1%})"
        yield f'<path class="first" d="{span}{caps}"/>'
        yield f'<circle class="second" cx="{x:.1f}" cy="{other:.1f}" r="3"/>'
        yield f'<circle class="first" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(told)}</title></circle>'


def _shifts(sight: Sight, places: Sequence[float], under: int) -> Iterator[str]:
    shifts = [sight.shift.stages.get(stage.name) for stage in sight.stages]
    most = max([0.3, *(value for value in shifts if value is not None)])
    for share in (0.0, 0.5, 1.0):
        yield from _line(under + LOW * (1 - share), f"{share * most:.2f}")
    yield _upright(under + LOW / 2, "shift, nats")
    for x, value, stage in zip(places, shifts, sight.stages, strict=True):
        if value is not None:
            high = max(1.0, LOW * value / most)
            box = f'x="{x - 13:.1f}" y="{under + LOW - high:.1f}" width="26" height="{high:.1f}"'
            yield f'<rect class="third" {box}><title>{escape(stage.name)}: shift {value:.3f}</title></rect>'


def maps(advice: Advice, seed: int = 0) -> list[Map]:
    """The images of train by their features at the recommended cut: principal components, and t-SNE, with thumbnails.

    Van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    sight = advice.sight
    rows = draw(advice.labels, sight.features.usable, MOST_POINTS, seed)
    features = power_normalize(sight.features.stage(sight.trunk.names.index(advice.recommendation.cut))[rows])
    few = min(COMPONENTS, len(rows) - 1, features.shape[1])
    if few < 2 or not np.ptp(features, axis=0).any():
        return []
    fitted = PCA(few, random_state=seed).fit(features)
    components = fitted.transform(features)
    first, second = fitted.explained_variance_ratio_[:2]
    across = f"across: the first principal component, {first:.0%} of the variance; up: the second, {second:.0%}"
    found = [Map("Principal components", across, _map(advice, rows, components[:, :2], "principal components"))]
    if len(rows) >= FEWEST_POINTS:
        perplexity = min(30.0, (len(rows) - 1) / 3)
        places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(components)
        near = f"no unit: what is near by its features is near here; perplexity {perplexity:.0f}"
        found.append(Map("t-SNE", near, _map(advice, rows, places, "t-SNE")))
    return found


def colors(count: int) -> list[str]:
    """A colour for each class."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    return [f"hsl({360 * number / count:.0f} 65% {(42, 58)[number % 2]}%)" for number in range(count)]


def _map(advice: Advice, rows: NDArray[np.int64], points: NDArray[Any], what: str) -> str:
    low, high = points.min(axis=0), points.max(axis=0)
    room = SIDE - 2 * THUMBNAIL
    places = THUMBNAIL + room * (points - low) / np.maximum(high - low, 1e-12)
    places[:, 1] = SIDE - places[:, 1]
    samples, labels = advice.dataset.of("train"), advice.dataset.labels
    color = colors(len(labels))
    parts = [f'<rect class="frame" x="0.5" y="0.5" width="{SIDE - 1}" height="{SIDE - 1}"/>']
    shown = 0
    # Those with a picture come last, so that they lie on top.
    for number in reversed(range(len(rows))):
        sample, (x, y) = samples[rows[number]], places[number]
        told = f"<title>{escape(f'{sample.name} ({labels[sample.label]})')}</title>"
        picture = thumbnail(sample.path, 2 * THUMBNAIL) if number < MOST_THUMBNAILS else None
        if picture is None:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color[sample.label]}">{told}</circle>')
            continue
        shown += 1
        box = f'x="{x - THUMBNAIL / 2:.1f}" y="{y - THUMBNAIL / 2:.1f}" width="{THUMBNAIL}" height="{THUMBNAIL}"'
        parts.append(
            f'<g>{told}<image {box} href="{picture}"/>'
            f'<rect {box} fill="none" stroke="{color[sample.label]}" stroke-width="2.5"/></g>'
        )
    said = f"{len(rows)} images by {what} of their features, coloured by class, {shown} of them with their picture"
    return _svg(SIDE, SIDE, said, parts)


def thumbnail(path: Path, size: int) -> str | None:
    """A small picture as a `data:` address; None for an image that can't be used."""
    try:
        picture = Image.fromarray(
            load(path, Preprocessing(size, (0.5,) * 3, (0.5,) * 3, crop_pct=1.0, interpolation="bilinear"))
        )
    except UnreadableImage:
        return None
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def legend(names: Mapping[str, str]) -> str:
    """Names with a spot of their colour each."""
    spots = "".join(f'<li><span style="background:{color}"></span>{escape(name)}</li>' for name, color in names.items())
    return f'<ul class="legend">{spots}</ul>'


def _svg(width: float, height: float, said: str, parts: Sequence[str]) -> str:
    view = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg {view} role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'


def _line(y: float, said: str) -> Iterator[str]:
    yield f'<path class="grid" d="M{LEFT} {y:.1f}h{WIDE}"/>'
    yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{said}</text>'


def _upright(y: float, said: str) -> str:
    return f'<text transform="translate(14 {y:.0f}) rotate(-90)" text-anchor="middle">{said}</text>'


def _text(x: float, y: float, said: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{escape(said)}</text>'


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
