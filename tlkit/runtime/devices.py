"""The device that is done with some images first, by its speed as it was measured on this machine.

A GPU needs seconds to start and to choose its kernels, so the CPU is done first with few images. Each run notes the
speed of the graph on its device for the runs after it.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tlkit.errors import ResourceError, TlkitNote
from tlkit.plugin.contract import Session
from tlkit.runtime import config, cuda, providers
from tlkit.runtime.session import OnnxSession, check_kernels
from tlkit.util import files
from tlkit.util.resources import cores
from tlkit.util.schema import parse_json

AUTO, CPU, GPU = "auto", "cpu", "cuda"
SPEEDS = "speeds"  # in the cache
NOTED = 64  # images from which a speed is noted, besides the first batch
FEW = 8  # images that a CPU is done with before a GPU is found, let alone started


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds from opening a graph to its first results, and images per second from then on, decoding included."""

    start: float
    rate: float

    def seconds(self, images: int, *, started: bool) -> float:
        """Return the seconds that so many images take, on a device that is started or not."""
        return (0.0 if started else self.start) + images / self.rate


def unmeasured() -> dict[str, Speed]:
    """Return speeds to begin with: those of EfficientNet-Lite0 in fp32 on a Xeon, per core, and on an H100.

    The GPU computes more than the cores decode, so that they limit the rate.
    """
    return {CPU: Speed(0.2, 48.0 * cores()), GPU: Speed(4.5, min(268.0 * cores(), 8281.0))}


class AutomaticSession(Session):
    """A graph on the CPU, and from then on when a GPU promises to be done first, there."""

    def __init__(self, file: Path, open_on: Callable[[str, int], OnnxSession]) -> None:
        """Open it on the CPU; `open_on` opens it on a device for so many images. Raises what that raises."""
        self.file, self._open_on, self._images = file, open_on, 0
        self._opened = {CPU: open_on(CPU, 0)}
        self._use(CPU, 0)
        opened = self._opened[CPU]
        self.input, self.outputs, self.metadata = opened.input, opened.outputs, opened.metadata

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        return self._opened[self.device].run(array, outputs)

    def warm_up(self, rows: int) -> None:
        """Prepare the device (see `OnnxSession.warm_up`)."""
        self._opened[self.device].warm_up(rows)

    def close(self) -> None:
        for session in self._opened.values():
            session.close()

    @cached_property
    def _devices(self) -> list[str]:
        """Devices that can run the graph."""
        with suppress(ResourceError):  # there is no GPU, or it has no kernels for this graph
            if providers.DEVICES[GPU][0] in onnxruntime.get_available_providers():
                check_kernels(self.file, GPU)
                cuda.gpu()
                return [CPU, GPU]
        return [CPU]

    def _use(self, device: str, images: int) -> None:
        if device not in self._opened:
            self._opened[device] = self._open_on(device, images)
        self.device, self.workers = device, self._opened[device].workers
        self.batch_size = self._opened[device].batch_size

    @contextmanager
    def running(self, images: int) -> Iterator[Callable[[int], object]]:
        """Take the device that has so many images done first; yield what is told of each batch that is done.

        What was done before counts as much as what is to come: a job of many parts is worth a start as well.
        """
        self._images += images
        work = self._images
        if work <= FEW or len(self._devices) == 1:
            yield lambda _images: None
            return
        speeds = unmeasured() | self.speeds()
        seconds = {name: speeds[name].seconds(work, started=name in self._opened) for name in self._devices}
        best, began = min(seconds, key=seconds.__getitem__), time.perf_counter()
        started = best in self._opened
        if best != self.device:
            expected = " and ".join(f"{each:.1f} s on {name}" for name, each in seconds.items())
            warnings.warn(f"device {best}: {images:,} images take about {expected}", TlkitNote, stacklevel=2)
            try:
                self._use(best, images)
            except ResourceError as error:
                warnings.warn(f"{error.what}; the CPU is used", TlkitNote, stacklevel=2)
                self._devices.remove(best)
        done = [(0, began)]
        yield lambda more: done.append((more, time.perf_counter()))
        later = sum(more for more, _ in done[2:])
        if later >= NOTED and self.device == best:
            start = speeds[best].start if started else done[1][1] - began
            self._note(Speed(start, later / max(done[-1][1] - done[1][1], 1e-6)))

    def speeds(self) -> dict[str, Speed]:
        """Return the speeds that were noted for this graph, by device."""
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):  # none, or another version's
            found = parse_json(self._record.read_bytes()).items()
            speeds = {name: Speed(float(facts["start"]), float(facts["rate"])) for name, facts in found}
            return {name: speed for name, speed in speeds.items() if speed.start >= 0 and 0 < speed.rate < math.inf}
        return {}

    def _note(self, speed: Speed) -> None:
        facts = {name: asdict(each) for name, each in (self.speeds() | {self.device: speed}).items()}
        with suppress(ResourceError), files.atomic_file(self._record) as temporary:  # the next run measures again
            temporary.write_text(json.dumps(facts), encoding="utf-8")

    @cached_property
    def _record(self) -> Path:
        identity = f"{files.sha256(self.file)} {config.machine()}, {cuda.gpu()}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:32]
        return files.cache_dir(SPEEDS) / f"{key}.json"
