"""Tune ONNX Runtime: the threads, batch size and graph optimization level with the highest throughput."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.model.bundle import Bundle
from tlkit.model.exports import Export
from tlkit.model.reference_images import parity_images
from tlkit.plugin.contract import Progress, silent
from tlkit.runtime.config import TUNING, RuntimeConfig, default_config, machine
from tlkit.runtime.session import LEVELS, OnnxSession
from tlkit.util.resources import cores
from tlkit.util.text import counted
from tlkit.verification.parity import TOLERANCES, compare

TRIED_LEVELS = LEVELS[:3]  # no graph has ever been faster without any optimization

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class TuningPolicy:
    """Lengths of a tuning: seconds are those of each runtime config in each round."""

    rounds: int = 3
    seconds: float = 0.5
    images: int = 16
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best runtime config and its images per second in each round, beside those of the default one."""

    machine: str
    best: RuntimeConfig
    throughputs: tuple[float, ...]
    default_throughputs: tuple[float, ...]

    @property
    def gain(self) -> float:
        """Throughput relative to that of the default runtime config."""
        return statistics.median(self.throughputs) / statistics.median(self.default_throughputs)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "gain": self.gain}

    def __str__(self) -> str:
        best, rounds = self.best, self.throughputs
        return (
            f"tuned to {counted(best.workers, 'thread')}, batch size {best.batch_size}, graph optimization "
            f"{best.level}: {statistics.median(rounds):.1f} images/s ({min(rounds):.1f} to {max(rounds):.1f}), "
            f"{self.gain:.2f} times the default {statistics.median(self.default_throughputs):.1f}"
        )


def tune(bundle: Bundle, export: Export, *, progress: Progress = silent, clock: Clock = time.perf_counter) -> Tuned:
    """Find the best runtime config for an ONNX export, and write it into its manifest.

    Threads and graph optimization first, then the batch size. Where none is faster beyond the spread of the rounds, the
    default one stays.
    """
    policy, file, start = TuningPolicy(), export.file(), default_config()
    images = parity_images(bundle).images[: policy.images]
    expected, tolerance = start.open(file).run(images), TOLERANCES[export.precision]
    tick = progress(f"tuning {export.name}", policy.rounds * 2)

    def measured(configs: Iterable[RuntimeConfig]) -> dict[RuntimeConfig, tuple[float, ...]]:
        """Return the images per second of each round by runtime config in tolerance, the best one first."""
        opened = {each: each.open(file) for each in configs}
        sessions = {
            each: session
            for each, session in opened.items()
            if each == start
            or compare(expected, session, images, tolerance=tolerance, batches=[session.batch_size]).passed
        }
        found: dict[RuntimeConfig, list[float]] = {each: [] for each in sessions}
        for _ in range(policy.rounds):
            for each, session in sessions.items():
                found[each].append(_throughput(session, images, each, policy.seconds, clock))
            tick(1)
        best_first = sorted(found, key=lambda each: -statistics.median(found[each]))
        return {each: tuple(found[each]) for each in best_first}

    numbers = dict.fromkeys((cores(), 1))
    tried = [replace(start, workers=workers, level=level) for workers in numbers for level in TRIED_LEVELS]
    best = next(iter(measured(tried)))
    sized = [replace(best, batch_size=size) for size in policy.batch_sizes]
    throughputs = measured(dict.fromkeys([start, *sized]))
    best = next(iter(throughputs))
    if min(throughputs[best]) <= max(throughputs[start]):
        best = start
    tuned = Tuned(machine(), best, throughputs[best], throughputs[start])
    export.amend({TUNING: tuned.to_json()})
    return tuned


def _throughput(
    session: OnnxSession, images: NDArray[np.uint8], config: RuntimeConfig, seconds: float, clock: Clock
) -> float:
    """Return images per second with as many concurrent calls as the runtime config has workers."""
    batch = images[np.arange(config.batch_size) % len(images)]

    def work(_worker: int) -> int:
        calls = 0
        while not calls or clock() < end:
            session.run(batch)
            calls += 1
        return calls

    with ThreadPoolExecutor(config.workers) as pool:
        list(pool.map(session.run, [batch] * config.workers))  # warm-up
        start = clock()
        end = start + seconds
        calls = sum(pool.map(work, range(config.workers)))
    return config.batch_size * calls / (clock() - start)
