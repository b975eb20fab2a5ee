"""Draw throughput against latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlkit.benchmarking.timing import InferenceTiming
from tlkit.evaluation.plot import check_plot
from tlkit.util.files import atomic_file


def plot_timings(timings: Sequence[InferenceTiming], file: Path) -> None:
    """Draw throughput against latency: a line for each session, a point for each batch size."""
    check_plot(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes: Any = figure.subplots()
    for name in dict.fromkeys(each.name for each in timings):
        points = sorted((each for each in timings if each.name == name), key=lambda each: each.batch_size)
        latencies, throughputs = [each.latency["p50"] for each in points], [each.throughput for each in points]
        axes.plot(latencies, throughputs, marker="o", label=name)
        for point, latency, throughput in zip(points, latencies, throughputs, strict=True):
            axes.annotate(f" {point.batch_size}", (latency, throughput), fontsize=8)
    axes.set(xscale="log", xlabel="median latency per call (ms)", ylabel="images per second")
    axes.set_ylim(bottom=0)
    axes.set_title("throughput against latency; numbers are batch sizes")
    axes.legend()
    with atomic_file(file) as temporary:
        figure.savefig(temporary, format=file.suffix.lower().removeprefix("."), dpi=150)
