"""Time sessions: latency and throughput by batch size, memory, and the stages before inference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.data.decoding import UnreadableImage, read_file
from tlkit.data.preprocessing import decoded_size, load
from tlkit.errors import ResourceError, UsageError
from tlkit.model import reference_images
from tlkit.model.bundle import Bundle
from tlkit.plugin.contract import Preprocessing, Progress, Session, silent
from tlkit.runtime.engine import IncompatibleEngine
from tlkit.util.resources import resident_memory

PERCENTILES = (50, 90, 99)
RESOLUTION = 1e-9  # of the clock, in seconds

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class BenchmarkPolicy:
    """Lengths of a benchmark: seconds are the minimum for each session in each round."""

    rounds: int = 5
    seconds: float = 0.5
    warm_up: int = 3  # calls: the first ones allocate
    images: int = 16  # that are decoded


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Latencies in ms per call by percentile, and images per second of each round."""

    latency: Mapping[str, float]  # p50, p90, p99
    throughputs: tuple[float, ...]

    @property
    def throughput(self) -> float:
        """The median of the rounds, in images per second."""
        return statistics.median(self.throughputs)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "throughput": self.throughput}

    def __str__(self) -> str:
        return f"{self.throughput:.1f} ({min(self.throughputs):.1f} to {max(self.throughputs):.1f})"


@dataclass(frozen=True, kw_only=True)
class InferenceTiming(Timing):
    """One session at one batch size.

    `cpu` and `gpu` are ms per call: processor time of all cores, and the GPU by its own clock, None where that is
    unknown. `memory` is what opening and running it added to the process.
    """

    name: str
    batch_size: int
    calls: int
    cpu: float
    gpu: float | None
    memory: float | None  # MiB


@dataclass(frozen=True, kw_only=True)
class StageTiming(Timing):
    """One stage before inference, in one thread, per image."""

    name: str
    images: int


@dataclass(slots=True)
class _Round:
    """The calls of one session in one round: the seconds of each, and processor and GPU time in total."""

    times: list[float]
    cpu: float
    gpu: float | None


def measure(
    bundle: Bundle,
    openers: Mapping[str, Callable[[], Session]],
    batch_sizes: Sequence[int],
    *,
    skipped: dict[str, str] | None = None,
    policy: BenchmarkPolicy | None = None,
    progress: Progress = silent,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> tuple[tuple[StageTiming, ...], tuple[InferenceTiming, ...]]:
    """Time every session at every batch size, interleaved over the rounds, so that other load meets all equally.

    `openers` opens each session by its name, once. One that can't be opened here is noted in `skipped` with the
    reason; without that, or where none is left, it is an error.
    """
    policy = policy or BenchmarkPolicy()
    contents = image_contents(bundle, policy.images)
    pixels = np.stack([load(content, bundle.record.preprocessing) for content in contents])
    sessions, memory = _open(openers, pixels, batch_sizes, skipped, policy)
    calls: dict[tuple[str, int], list[_Round]] = {(name, size): [] for name in sessions for size in batch_sizes}
    prepared: dict[str, list[list[float]]] = {}
    tick = progress("rounds", policy.rounds)
    for _ in range(policy.rounds):
        for stage, times in _prepare(contents, bundle.record.preprocessing, clock).items():
            prepared.setdefault(stage, []).append(times)
        for (name, size), rounds in calls.items():
            rounds.append(_calls(sessions[name], _batch(pixels, size), policy.seconds, clock, cpu_clock))
        tick(1)
    stages = tuple(
        StageTiming(name=name, images=len(contents), latency=_percentiles(rounds), throughputs=_throughputs(rounds, 1))
        for name, rounds in prepared.items()
    )
    return stages, tuple(_timing(name, size, rounds, memory[name]) for (name, size), rounds in calls.items())


def _open(
    openers: Mapping[str, Callable[[], Session]],
    pixels: NDArray[np.uint8],
    batch_sizes: Sequence[int],
    skipped: dict[str, str] | None,
    policy: BenchmarkPolicy,
) -> tuple[dict[str, Session], dict[str, float | None]]:
    """Open and warm up every session; also returns the MiB of memory that each added."""
    sessions: dict[str, Session] = {}
    memory: dict[str, float | None] = {}
    for name, opener in openers.items():
        before = resident_memory()
        try:
            sessions[name] = opener()
        except (ResourceError, IncompatibleEngine) as error:
            if skipped is None or (not sessions and name == list(openers)[-1]):
                raise
            skipped[name] = error.what
            continue
        for size in batch_sizes:
            for _ in range(policy.warm_up):
                sessions[name].run(_batch(pixels, size))
        after = resident_memory()
        memory[name] = None if before is None or after is None else max(0.0, (after - before) / 2**20)
    return sessions, memory


def image_contents(bundle: Bundle, count: int) -> list[bytes]:
    """Return the bytes of image files to decode: of the validation split if it is there, or else the golden images.

    Unreadable images are left out; where all are, the first is named by an `UnreadableImage`.
    """
    if reference_images.source(bundle) is not None:
        samples = reference_images.spread(reference_images.dataset(bundle)[1].of("val"), count)
        contents, problems = list[bytes](), list[UnreadableImage]()
        for sample in samples:
            try:
                load(sample.path, bundle.record.preprocessing)
                contents.append(read_file(sample.path))
            except UnreadableImage as problem:
                problems.append(problem)
        if problems and not contents:
            raise problems[0]
        return contents
    if not bundle.record.golden:
        raise UsageError(
            "there are no images to run: those it was trained on are not on this machine, and it keeps no golden ones",
            file=bundle.root,
            do="train it again here",
        )
    return bundle.golden_bytes()


def _batch(pixels: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
    """Return a batch of images, repeated where there are fewer."""
    return pixels[np.arange(batch) % len(pixels)]


def _timing(name: str, batch: int, rounds: Sequence[_Round], memory: float | None) -> InferenceTiming:
    times = [each.times for each in rounds]
    calls = sum(map(len, times))
    gpus = [each.gpu for each in rounds if each.gpu is not None]
    return InferenceTiming(
        name=name,
        batch_size=batch,
        calls=calls,
        latency=_percentiles(times),
        throughputs=_throughputs(times, batch),
        cpu=1000 * sum(each.cpu for each in rounds) / calls,
        gpu=1000 * sum(gpus) / calls if len(gpus) == len(rounds) else None,
        memory=memory,
    )


def _calls(session: Session, images: NDArray[np.uint8], seconds: float, clock: Clock, cpu_clock: Clock) -> _Round:
    """Call at least once, until `seconds` are over."""
    done = _Round([], 0.0, None)
    end = clock() + seconds
    spent = cpu_clock()
    while not done.times or clock() < end:
        before = clock()
        session.run(images)
        done.times.append(clock() - before)
        if session.gpu_seconds is not None:
            done.gpu = (done.gpu or 0.0) + session.gpu_seconds
    done.cpu = cpu_clock() - spent
    return done


def _prepare(contents: Sequence[bytes], preprocessing: Preprocessing, clock: Clock) -> dict[str, list[float]]:
    """Return the seconds of each stage from a file's bytes to pixels, image by image.

    `load` is timed in total, and its decoding once more by itself: an image that is decoded is resized at once.
    """
    decode, resize = [], []
    for content in contents:
        before = clock()
        decoded_size(content, preprocessing)
        between = clock()
        load(content, preprocessing)
        whole = clock() - between
        decode.append(min(between - before, whole))
        resize.append(max(whole - decode[-1], RESOLUTION))  # the second decoding may happen to take all the time
    return {"decode": decode, "crop and resize": resize}


def _percentiles(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return percentiles of all calls of all rounds, in ms."""
    values = np.percentile([1000 * seconds for calls in rounds for seconds in calls], PERCENTILES)
    return {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, values, strict=True)}


def _throughputs(rounds: Sequence[Sequence[float]], batch: int) -> tuple[float, ...]:
    """Return images per second in each round."""
    return tuple(batch * len(calls) / sum(calls) for calls in rounds)
