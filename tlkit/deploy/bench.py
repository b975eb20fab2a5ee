"""How fast an exported model is: latency and images a second by batch, memory, and the share of decoding."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.data.images import load
from tlkit.deploy import source
from tlkit.deploy.progress import Progress, silent
from tlkit.errors import UsageError
from tlkit.model.bundle import Bundle
from tlkit.plugin.contract import Pixels, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS = 5
SECONDS = 0.5  # of every side in every round, at the least
WARM_UP = 3  # calls: the first ones allocate
PICTURES = 16  # that are decoded
PERCENTILES = (50, 90, 99)

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Speed:
    """One model at one batch size. Latencies are those of a call, in ms; `rates` are images a second, one a round."""

    name: str
    batch: int
    calls: int
    latency: Mapping[str, float]  # p50, p90, p99
    rates: tuple[float, ...]
    memory: float | None  # MiB that opening and running it added to the process; None where that can't be told

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rates)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {**asdict(self), "rate": self.rate}


@dataclass(frozen=True, slots=True)
class Decoding:
    """Reading pictures to pixels, in one thread: ms a picture, and pictures a second in each round."""

    pictures: int
    latency: Mapping[str, float]
    rates: tuple[float, ...]

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rates)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {**asdict(self), "rate": self.rate}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The stages of the pipeline: decoding (with cropping and resizing), and inference for each side."""

    decoding: Decoding
    speeds: tuple[Speed, ...]


def benchmark(
    bundle: Bundle,
    openers: Mapping[str, Callable[[], Session]],
    batches: Sequence[int],
    *,
    seconds: float = SECONDS,
    progress: Progress = silent,
    clock: Clock = time.perf_counter,
) -> Benchmark:
    """Time every session at every batch size, in turns, so that whatever else the machine does meets all alike.

    `openers` opens each side by its name.
    """
    contents = pictures(bundle)
    pixels = np.stack([load(content, bundle.record.pixels) for content in contents])
    sides, memory = {}, {}
    for name, opener in openers.items():
        before = resident()
        sides[name] = opener()
        for batch in batches:
            for _ in range(WARM_UP):
                sides[name].run(_batch(pixels, batch))
        after = resident()
        memory[name] = None if before is None or after is None else max(0.0, (after - before) / 2**20)

    calls: dict[tuple[str, int], list[list[float]]] = {(name, batch): [] for name in sides for batch in batches}
    decoded: list[list[float]] = []
    tick = progress("rounds", ROUNDS)
    for _ in range(ROUNDS):
        decoded.append(_decode(contents, bundle.record.pixels, clock))
        for (name, batch), rounds in calls.items():
            rounds.append(_calls(sides[name], _batch(pixels, batch), seconds, clock))
        tick(1)
    speeds = tuple(
        Speed(name, batch, sum(map(len, rounds)), _percentiles(rounds), _rates(rounds, batch), memory[name])
        for (name, batch), rounds in calls.items()
    )
    return Benchmark(Decoding(len(contents), _percentiles(decoded), _rates(decoded, 1)), speeds)


def pictures(bundle: Bundle) -> list[bytes]:
    """The content of some picture files to decode: of the validation split if it is there, or else the golden ones."""
    place = Path(bundle.record.data["source"])
    if place.exists():
        samples = source.dataset(bundle)[1].of("val")
        return [sample.path.read_bytes() for sample in source.spread(samples, PICTURES)]
    if not bundle.record.golden:
        raise UsageError(
            "there are no images to run: those it was trained on are gone, and it keeps no golden ones",
            file=bundle.root,
            do=f"put them back at {place}",
        )
    return bundle.golden_bytes()


def resident() -> int | None:
    """The bytes of memory that this process holds now; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _batch(pixels: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
    """So many images, repeated where there are fewer."""
    return pixels[np.arange(batch) % len(pixels)]


def _calls(session: Session, images: NDArray[np.uint8], seconds: float, clock: Clock) -> list[float]:
    """The seconds of each call, one at the least, until `seconds` are over."""
    times: list[float] = []
    end = clock() + seconds
    while not times or clock() < end:
        before = clock()
        session.run(images)
        times.append(clock() - before)
    return times


def _decode(contents: Sequence[bytes], recipe: Pixels, clock: Clock) -> list[float]:
    times = []
    for content in contents:
        before = clock()
        load(content, recipe)
        times.append(clock() - before)
    return times


def _percentiles(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of all calls of all rounds, in ms."""
    values = np.percentile([1000 * seconds for calls in rounds for seconds in calls], PERCENTILES)
    return {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, values, strict=True)}


def _rates(rounds: Sequence[Sequence[float]], batch: int) -> tuple[float, ...]:
    """Images a second in each round."""
    return tuple(batch * len(calls) / sum(calls) for calls in rounds)
