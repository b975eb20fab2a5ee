"""Which threads, batch and rewriting of the graph let ONNX Runtime take the most images a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.model import exports
from tlkit.model.bundle import Bundle
from tlkit.model.reference_images import parity_images
from tlkit.plugin.contract import Progress, silent
from tlkit.runtime.config import TUNING, RuntimeConfig, machine, usual
from tlkit.runtime.session import LEVELS, OnnxSession
from tlkit.util.resources import cores
from tlkit.verification.parity import TOLERANCES, compare

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS = 3
IMAGES = 16  # that are run
SECONDS = 0.5  # of each setting in each round
BATCHES = (1, 2, 4, 8, 16)
TRIED_LEVELS = LEVELS[:3]  # not rewritten at all, no graph has ever been faster

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was best, and the images a second that it took in each round, beside those of the usual setting."""

    machine: str
    best: RuntimeConfig
    rates: tuple[float, ...]
    usual: tuple[float, ...]

    @property
    def gain(self) -> float:
        """How many times the images a second of the usual setting."""
        return statistics.median(self.rates) / statistics.median(self.usual)

    def to_json(self) -> dict[str, Any]:
        """As it stands in manifest.json."""
        return {**asdict(self), "gain": self.gain}

    def summary(self) -> str:
        """In a line."""
        threads = f"{self.best.workers} thread{'s' if self.best.workers > 1 else ''}"
        rate, usual = statistics.median(self.rates), statistics.median(self.usual)
        return (
            f"tuned to {threads}, batch {self.best.batch_size}, graph level {self.best.level}: {rate:.1f} images/s "
            f"({min(self.rates):.1f} to {max(self.rates):.1f}), {self.gain:.2f} times the usual {usual:.1f}"
        )


def tune(
    bundle: Bundle,
    precision: str = exports.PRECISION,
    *,
    seconds: float = SECONDS,
    progress: Progress = silent,
    clock: Clock = time.perf_counter,
) -> Tuned:
    """Find the best setting for an ONNX by-product of a bundle, and write it into its record.

    Threads and rewriting first, then the batch. A setting whose results are not those of the usual one within the
    tolerance of the precision is left out; where none is faster beyond the spread of the rounds, the usual one stays.
    """
    file = exports.graph_file(bundle.root, "model", precision=precision)
    images = parity_images(bundle)[0][:IMAGES]
    start = usual()
    expected = start.open(file).run(images)
    tick = progress(f"tuning {precision}", ROUNDS * 2)

    def same(session: OnnxSession) -> bool:
        tolerance = TOLERANCES[precision]
        return compare(expected, session, images, tolerance=tolerance, batches=[session.batch_size]).passed

    def first(settings: Sequence[RuntimeConfig]) -> tuple[RuntimeConfig, Mapping[RuntimeConfig, tuple[float, ...]]]:
        sessions = {each: each.open(file) for each in settings}
        sessions = {each: session for each, session in sessions.items() if each == start or same(session)}
        rates: dict[RuntimeConfig, list[float]] = {each: [] for each in sessions}
        for _ in range(ROUNDS):
            for each, session in sessions.items():
                rates[each].append(_rate(session, images, each, seconds, clock))
            tick(1)
        return max(rates, key=lambda each: statistics.median(rates[each])), {k: tuple(v) for k, v in rates.items()}

    ways = dict.fromkeys((cores(), 1))
    best, _ = first([replace(start, workers=workers, level=level) for workers in ways for level in TRIED_LEVELS])
    best, rates = first(list(dict.fromkeys([start, *(replace(best, batch_size=batch) for batch in BATCHES)])))
    if min(rates[best]) <= max(rates[start]):
        best = start
    tuned = Tuned(machine(), best, rates[best], rates[start])
    exports.amend(file.parent, {TUNING: tuned.to_json()})
    return tuned


def _rate(
    session: OnnxSession, images: NDArray[np.uint8], setting: RuntimeConfig, seconds: float, clock: Clock
) -> float:
    """Images a second with as many calls at once as the setting has workers."""
    batch = images[np.arange(setting.batch_size) % len(images)]

    def work(_worker: int) -> int:
        calls = 0
        while not calls or clock() < end:
            session.run(batch)
            calls += 1
        return calls

    with ThreadPoolExecutor(setting.workers) as pool:
        list(pool.map(session.run, [batch] * setting.workers))  # warm-up
        start = clock()
        end = start + seconds
        calls = sum(pool.map(work, range(setting.workers)))
    return setting.batch_size * calls / (clock() - start)
