"""Benchmark the exports of a bundle: the order of a benchmark, top to bottom, and its result."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tlkit.benchmarking.timing import InferenceTiming, StageTiming, measure
from tlkit.benchmarking.tuning import Tuned, tune
from tlkit.errors import UsageError
from tlkit.evaluation.plot import check_plot, save_plot
from tlkit.model import exports
from tlkit.model.bundle import Bundle
from tlkit.model.exports import Export, Exports
from tlkit.plugin.contract import Progress, Session, silent
from tlkit.runtime.engine import Opener
from tlkit.runtime.session import check_kernels
from tlkit.util.text import counted
from tlkit.verification.trained import TrainedModules

TORCH = "torch"  # no target: the trained modules


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Timings of the stages before inference and of each session, runtime configs that were tuned, and skipped exports.

    A session is named by its export and, where they vary, its threads: "onnx/int8, 2 threads".
    """

    stages: tuple[StageTiming, ...]
    inference: tuple[InferenceTiming, ...]
    tuned: Mapping[str, Tuned] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def fastest(self) -> str | None:
        """The ONNX export with the highest throughput ("onnx/int8"); None where none was measured."""
        own = [each for each in self.inference if each.name.startswith(f"{exports.TARGET}/")]
        return max(own, key=lambda each: each.throughput).name.split(",")[0] if own else None

    def to_json(self) -> dict[str, Any]:
        return {
            "tuned": {name: tuned.to_json() for name, tuned in self.tuned.items()},
            "stages": [each.to_json() for each in self.stages],
            "inference": [each.to_json() for each in self.inference],
            "skipped": dict(self.skipped),
        }

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield a table for people."""
        width = max((len(each.name) for each in self.inference), default=0)
        gpu = any(each.gpu is not None for each in self.inference)
        columns = f"   p50 ms   p90 ms   p99 ms   CPU ms{'   GPU ms' if gpu else ''}"
        yield f"{'':<{width}}  batch{columns}  images/s, median (min to max)  memory MiB"
        for each in self.inference:
            latency = "".join(f"{each.latency[name]:>9.2f}" for name in ("p50", "p90", "p99")) + f"{each.cpu:>9.2f}"
            if gpu:
                latency += f"{'-':>9}" if each.gpu is None else f"{each.gpu:>9.2f}"
            memory = "-" if each.memory is None else f"{each.memory:.0f}"
            yield f"{each.name:<{width}}  {each.batch_size:>5}{latency}  {each!s:<29}  {memory:>10}"
        for stage in self.stages:
            yield f"{stage.name}, 1 thread, {stage.images} images: p50 {stage.latency['p50']:.2f} ms, {stage} images/s"
        yield from (f"{name}: {tuned}" for name, tuned in self.tuned.items())

    def plot(self, file: Path) -> None:
        """Draw throughput against latency: a line for each session, a point for each batch size."""
        check_plot(file)
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 5), layout="constrained")
        axes: Any = figure.subplots()
        for name in dict.fromkeys(each.name for each in self.inference):
            points = sorted((each for each in self.inference if each.name == name), key=lambda each: each.batch_size)
            latencies, throughputs = [each.latency["p50"] for each in points], [each.throughput for each in points]
            axes.plot(latencies, throughputs, marker="o", label=name)
            for point, latency, throughput in zip(points, latencies, throughputs, strict=True):
                axes.annotate(f" {point.batch_size}", (latency, throughput), fontsize=8)
        axes.set(xscale="log", xlabel="median latency per call (ms)", ylabel="images per second")
        axes.set_ylim(bottom=0)
        axes.set_title("throughput against latency; numbers are batch sizes")
        axes.legend()
        save_plot(figure, file)


def benchmark(  # noqa: PLR0913  # the options of the verb
    bundle: Bundle,
    opener: Opener,
    *,
    targets: Collection[str] = (),
    precisions: Collection[str] = (),
    batch_sizes: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (),
    tuning: bool = False,
    trained: TrainedModules | None = None,
    progress: Progress = silent,
) -> BenchmarkResult:
    """Time the exports of these targets and precisions, or all that run here; "torch" names the `trained` modules.

    `threads` times each export with several numbers of threads. `tuning` finds the fastest runtime config of each ONNX
    export and keeps it in its manifest.
    """
    chosen = _select(bundle, opener, targets, precisions)
    tunable = [export for export in chosen if export.target == exports.TARGET] if tuning else []
    if tuning and not tunable:
        raise UsageError("--tune is for ONNX graphs, and none of them is among what was asked for")
    for export in tunable:
        check_kernels(export.file(), opener.device)
    openers: dict[str, Callable[[], Session]] = {}
    if TORCH in targets and trained is not None and (not precisions or exports.PRECISION in precisions):
        openers[f"{TORCH}/{exports.PRECISION}"] = trained.session
    for export in chosen:
        for number in threads if threads and opener.takes_threads(export) else (0,):
            name = export.name + (f", {counted(number, 'thread')}" if number else "")
            openers[name] = partial(opener.open, export, threads=number)
    skipped: dict[str, str] = {}
    explicit = bool(targets) or len(openers) == 1
    stages, inference = measure(bundle, openers, batch_sizes, skipped=None if explicit else skipped, progress=progress)
    # Last, as memory that it has used would count for none of the sessions.
    tuned = {export.name: tune(bundle, export, progress=progress) for export in tunable}
    return BenchmarkResult(stages, inference, tuned, skipped)


def _select(bundle: Bundle, opener: Opener, targets: Collection[str], precisions: Collection[str]) -> list[Export]:
    """Return the exports that were asked for, beside the trained modules."""
    named, found = [name for name in targets if name != TORCH], Exports.of(bundle)
    opener.check(named, found)
    if targets and not named:
        return []
    chosen = [found.get(*place) for place in found.select(named, precisions)]
    for export in chosen:
        export.file()  # refused at once where it was changed
    return chosen
