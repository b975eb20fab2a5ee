"""How fast an exported model is: latency and images a second by batch, memory, and the share of decoding."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.data.preprocessing import decoded, load
from tlkit.errors import ResourceError, TlkitError, UsageError
from tlkit.model import reference_images
from tlkit.model.bundle import Bundle
from tlkit.plugin.contract import Preprocessing, Progress, Session, silent
from tlkit.runtime.engine import IncompatibleEngine
from tlkit.util.resources import resident_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS = 5
SECONDS = 0.5  # of every side in every round, at the least
WARM_UP = 3  # calls: the first ones allocate
PICTURES = 16  # that are decoded
PERCENTILES = (50, 90, 99)

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Latencies are those of a call, in ms by percentile; `rates` are images a second, one a round."""

    latency: Mapping[str, float]  # p50, p90, p99
    rates: tuple[float, ...]

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rates)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {**asdict(self), "rate": self.rate}


@dataclass(frozen=True, kw_only=True)
class Speed(Timed):
    """One model at one batch size.

    `cpu` and `gpu` are ms a call that the processor spent, all cores together, and the GPU by its own clock; None where
    that can't be told. `memory` is what opening and running it added to the process.
    """

    name: str
    batch_size: int
    calls: int
    cpu: float
    gpu: float | None
    memory: float | None  # MiB


@dataclass(frozen=True, kw_only=True)
class Stage(Timed):
    """One stage before inference, in one thread: the latency is of a picture."""

    name: str
    pictures: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The stages of the pipeline: what comes before inference, in its order, and inference for each side."""

    stages: tuple[Stage, ...]
    speeds: tuple[Speed, ...]


@dataclass(slots=True)
class _Round:
    """The calls of one side in one round: the seconds of each, and what they cost processor and GPU altogether."""

    times: list[float]
    cpu: float
    gpu: float | None


def benchmark(
    bundle: Bundle,
    openers: Mapping[str, Callable[[], Session]],
    batches: Sequence[int],
    *,
    seconds: float = SECONDS,
    lacking: Callable[[str, TlkitError], None] | None = None,
    progress: Progress = silent,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> Benchmark:
    """Time every session at every batch size, in turns, so that whatever else the machine does meets all alike.

    `openers` opens each side by its name, once. One that can't be opened here is told to `lacking` and left out, or
    without that an error, as it is when none is left.
    """
    contents = pictures(bundle)
    pixels = np.stack([load(content, bundle.record.preprocessing) for content in contents])
    sides: dict[str, Session] = {}
    memory: dict[str, float | None] = {}
    for name, opener in openers.items():
        before = resident_memory()
        try:
            sides[name] = opener()
        except (ResourceError, IncompatibleEngine) as error:
            if lacking is None or (not sides and name == list(openers)[-1]):
                raise
            lacking(name, error)
            continue
        for batch in batches:
            for _ in range(WARM_UP):
                sides[name].run(_batch(pixels, batch))
        after = resident_memory()
        memory[name] = None if before is None or after is None else max(0.0, (after - before) / 2**20)

    calls: dict[tuple[str, int], list[_Round]] = {(name, batch): [] for name in sides for batch in batches}
    prepared: dict[str, list[list[float]]] = {}
    tick = progress("rounds", ROUNDS)
    for _ in range(ROUNDS):
        for stage, times in _prepare(contents, bundle.record.preprocessing, clock).items():
            prepared.setdefault(stage, []).append(times)
        for (name, batch), rounds in calls.items():
            rounds.append(_calls(sides[name], _batch(pixels, batch), seconds, clock, cpu_clock))
        tick(1)
    stages = tuple(
        Stage(name=name, pictures=len(contents), latency=_percentiles(rounds), rates=_rates(rounds, 1))
        for name, rounds in prepared.items()
    )
    return Benchmark(
        stages, tuple(_speed(name, batch, rounds, memory[name]) for (name, batch), rounds in calls.items())
    )


def pictures(bundle: Bundle) -> list[bytes]:
    """The content of some picture files to decode: of the validation split if it is there, or else the golden ones."""
    if reference_images.source(bundle) is not None:
        samples = reference_images.dataset(bundle)[1].of("val")
        return [sample.path.read_bytes() for sample in reference_images.spread(samples, PICTURES)]
    if not bundle.record.golden:
        raise UsageError(
            "there are no images to run: those it was trained on are not on this machine, and it keeps no golden ones",
            file=bundle.root,
            do="train it again here",
        )
    return bundle.golden_bytes()


def _batch(pixels: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
    """So many images, repeated where there are fewer."""
    return pixels[np.arange(batch) % len(pixels)]


def _speed(name: str, batch: int, rounds: Sequence[_Round], memory: float | None) -> Speed:
    times = [each.times for each in rounds]
    calls = sum(map(len, times))
    gpus = [each.gpu for each in rounds if each.gpu is not None]
    return Speed(
        name=name,
        batch_size=batch,
        calls=calls,
        latency=_percentiles(times),
        rates=_rates(times, batch),
        cpu=1000 * sum(each.cpu for each in rounds) / calls,
        gpu=1000 * sum(gpus) / calls if len(gpus) == len(rounds) else None,
        memory=memory,
    )


def _calls(session: Session, images: NDArray[np.uint8], seconds: float, clock: Clock, cpu_clock: Clock) -> _Round:
    """The seconds of each call, one at the least, until `seconds` are over."""
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


def _prepare(contents: Sequence[bytes], recipe: Preprocessing, clock: Clock) -> dict[str, list[float]]:
    """The seconds of each stage from a file's bytes to pixels, picture by picture.

    `load` is timed as a whole, and its decoding once more by itself: a picture that is decoded is resized at once.
    """
    decode, resize = [], []
    for content in contents:
        before = clock()
        decoded(content, recipe)
        between = clock()
        load(content, recipe)
        whole = clock() - between
        decode.append(min(between - before, whole))
        resize.append(whole - decode[-1])
    return {"decode": decode, "crop and resize": resize}


def _percentiles(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of all calls of all rounds, in ms."""
    values = np.percentile([1000 * seconds for calls in rounds for seconds in calls], PERCENTILES)
    return {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, values, strict=True)}


def _rates(rounds: Sequence[Sequence[float]], batch: int) -> tuple[float, ...]:
    """Images a second in each round."""
    return tuple(batch * len(calls) / sum(calls) for calls in rounds)
