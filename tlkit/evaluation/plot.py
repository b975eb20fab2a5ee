"""Plot metrics: the confusion matrix and the reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlkit.errors import UsageError, require
from tlkit.evaluation.metrics import Metrics
from tlkit.util.files import atomic_file, check_own, contains

MAX_NUMBERS = 20  # classes; the cells of more are too small for numbers
MARK = "tlkit plot"  # in the metadata of the file
FORMATS = ("png", "svg", "pdf")


def check_plot(file: Path) -> None:
    """Raise an error, before any work, if a plot can't be drawn.

    UsageError for its format or a file that is no plot of tlkit's, ResourceError without matplotlib.
    """
    if file.suffix.lower().removeprefix(".") not in FORMATS:
        raise UsageError("not a format of plots", file=file, do=f"end its name in .{', .'.join(FORMATS)}")
    check_own(file, lambda path: contains(path, MARK.encode()))
    require("matplotlib", "drawing", file)


def plot(metrics: Metrics, labels: Sequence[str], file: Path) -> None:
    """Draw the confusion matrix, as shares of each true class, beside the reliability diagram."""
    check_plot(file)
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    size = max(4.5, 0.3 * len(labels) + 2)
    figure = Figure(figsize=(size + 5, max(4.5, size)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[size, 4.5])
    _confusion(left, metrics, labels)
    _reliability(right, metrics)
    save_plot(figure, file)


def save_plot(figure: Any, file: Path) -> None:
    """Write a figure atomically, marked as what tlkit may replace."""
    kind = file.suffix.lower().removeprefix(".")
    with atomic_file(file, check=check_plot) as temporary:
        figure.savefig(temporary, format=kind, dpi=150, metadata={"Software" if kind == "png" else "Creator": MARK})


def _confusion(axes: Any, metrics: Metrics, labels: Sequence[str]) -> None:
    counts = metrics.confusion
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=45, ha="right")
    axes.set_yticks(ticks, labels)
    axes.set(
        xlabel="predicted class",
        ylabel="true class",
        title=f"accuracy {metrics.accuracy:.1%} of {metrics.images} images",
    )
    if len(labels) <= MAX_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)


def _reliability(axes: Any, metrics: Metrics) -> None:
    """Draw accuracy per bin of confidence; on the diagonal, probabilities are calibrated."""
    images, confidence, accuracy = metrics.reliability.T
    filled = images > 0
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.scatter(
        confidence[filled], accuracy[filled], s=20 + 180 * images[filled] / images.sum(), alpha=0.7, edgecolor="none"
    )
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set(xlabel="confidence", ylabel="accuracy", title=f"calibration error {metrics.ece:.3f}")
