"""Figures of a report as SVG: the confusion matrix, the reliability diagram, and accuracy against coverage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tlkit.evaluation.metrics import Metrics
from tlkit.pages.html import text
from tlkit.pages.svg import svg
from tlkit.reporting.selective import Selective
from tlkit.util.statistics import wilson

CELL, MARGIN, LABEL = 30, 130, 16  # pixels of the matrix; characters of a label beside it
LEFT, TOP, SIDE = 56, 12, 300  # of a diagram
NUMBERS = 15  # classes; the cells of more have no numbers


def matrix(confusion: NDArray[np.int64], classes: Sequence[int], labels: Sequence[str]) -> str:
    """Return the confusions among some classes, in this order: rows are true classes, columns predicted ones.

    A cell is as dark as its share of the images of the true class.
    """
    cell = CELL if len(classes) <= NUMBERS else CELL * 2 / 3
    side = cell * len(classes)
    parts = [f'<rect class="frame" x="{MARGIN}" y="{MARGIN}" width="{side:.0f}" height="{side:.0f}"/>']
    for row, true in enumerate(classes):
        y, total = MARGIN + row * cell, max(1, int(confusion[true].sum()))
        parts.append(
            f'<text x="{MARGIN - 6}" y="{y + cell * 0.65:.0f}" text-anchor="end">{_short(labels[true])}</text>'
        )
        x = MARGIN + (row + 0.65) * cell
        turned = f'<text transform="translate({x:.0f} {MARGIN - 6}) rotate(-60)">{_short(labels[true])}</text>'
        parts.append(turned)
        for column, predicted in enumerate(classes):
            count = int(confusion[true, predicted])
            if not count:
                continue
            kind = "right" if true == predicted else "wrong"
            place = f'x="{MARGIN + column * cell:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}"'
            title = f"{labels[true]} predicted as {labels[predicted]}: {count} of {total}"
            opacity = 0.12 + 0.88 * count / total
            tip = f"<title>{text(title)}</title>"
            parts.append(f'<rect class="{kind}" {place} fill-opacity="{opacity:.2f}">{tip}</rect>')
            if len(classes) <= NUMBERS:
                center = f'x="{MARGIN + (column + 0.5) * cell:.1f}" y="{y + cell * 0.65:.1f}"'
                parts.append(f'<text class="number" {center} text-anchor="middle">{count}</text>')
    middle = MARGIN + side / 2
    parts.append(f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">true class</text>')
    parts.append(f'<text x="{middle:.0f}" y="14" text-anchor="middle">predicted class</text>')
    title = f"Confusion matrix of {len(classes)} classes, rows: true class, columns: predicted class"
    return svg(MARGIN + side + 40, MARGIN + side + 8, title, parts)


def reliability(metrics: Metrics) -> str:
    """Return accuracy by confidence, with 95 % intervals; on the diagonal a probability is what it says."""
    parts = [*_axes("probability of the predicted class", "share that is right", 0.0)]
    parts.append(f'<path class="second" d="M{LEFT} {TOP + SIDE}L{LEFT + SIDE} {TOP}"/>')
    most = max(1.0, float(metrics.reliability[:, 0].max()))
    for images, confidence, accuracy in metrics.reliability.tolist():
        if not images:
            continue
        x, y = LEFT + SIDE * confidence, TOP + SIDE * (1 - accuracy)
        low, high = wilson(round(accuracy * images), int(images))
        tip = f"<title>{int(images)} images: probability {confidence:.1%}, right {accuracy:.1%}</title>"
        parts.append(f'<path class="first" d="M{x:.1f} {TOP + SIDE * (1 - low):.1f}V{TOP + SIDE * (1 - high):.1f}"/>')
        parts.append(
            f'<circle class="first" cx="{x:.1f}" cy="{y:.1f}" r="{3 + 5 * (images / most) ** 0.5:.1f}">{tip}</circle>'
        )
    title = f"Reliability: expected calibration error {metrics.ece:.3f}"
    return svg(LEFT + SIDE + 16, TOP + SIDE + 48, title, parts)


def coverage(found: Selective) -> str:
    """Return the accuracy of the most confident share of the images, from few of them to all."""
    least = min(0.9, float(np.floor(10 * found.curve[:, 1].min()) / 10))
    parts = [*_axes("share of the images, the most confident first", "share that is right", least)]
    points = " ".join(
        f"{LEFT + SIDE * x:.1f},{TOP + SIDE * (1 - (y - least) / (1 - least)):.1f}" for x, y in found.curve.tolist()
    )
    parts.append(f'<polyline class="first" points="{points}"/>')
    return svg(LEFT + SIDE + 16, TOP + SIDE + 48, "Accuracy against coverage", parts)


def _axes(horizontal: str, vertical: str, least: float) -> Iterator[str]:
    """Yield the frame of a diagram from 0 to 1, from `least` on the vertical axis."""
    yield f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}"/>'
    for step in range(5):
        share = step / 4
        y, x = TOP + SIDE * (1 - share), LEFT + SIDE * share
        percent = f"{100 * (least + (1 - least) * share):.3g}%"
        yield f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{percent}</text>'
        yield f'<text x="{x:.0f}" y="{TOP + SIDE + 18}" text-anchor="middle">{share:.0%}</text>'
    yield f'<text x="{LEFT + SIDE / 2:.0f}" y="{TOP + SIDE + 40}" text-anchor="middle">{horizontal}</text>'
    turned = f"translate(12 {TOP + SIDE / 2:.0f}) rotate(-90)"
    yield f'<text transform="{turned}" text-anchor="middle">{vertical}</text>'


def _short(label: str) -> str:
    return text(label if len(label) <= LABEL else label[: LABEL - 1] + "…")
