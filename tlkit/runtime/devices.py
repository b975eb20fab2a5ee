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
from tlkit.runtime.resizing import resize
from tlkit.runtime.session import OnnxSession, check_kernels
from tlkit.util import files
from tlkit.util.resources import cores
from tlkit.util.schema import parse_json

AUTO, CPU, GPU = "auto", "cpu", "cuda"
SPEEDS = "speeds"  # in the cache
NOTED = 64  # images from which a speed is noted, besides the first batch
FEW = 8  # images that a CPU is done with before its speed is measured
WORTH = 1.5  # seconds of a CPU's work from which a GPU is looked for; none starts in less
DECODED = 268.0  # images per second and core
H100 = 150.0  # times what a core of a Xeon computes, in fp32


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds from opening a graph to its first results, and images per second from then on, decoding included."""

    start: float
    rate: float

    def seconds(self, images: int, *, started: bool) -> float:
        """Return the seconds that so many images take, on a device that is started or not."""
        return (0.0 if started else self.start) + images / self.rate


def assumed(seconds: float) -> dict[str, Speed]:
    """Return speeds where none is known: a core computes an image in so many seconds, and the GPU is an H100.

    A GPU may compute more than the cores decode, so that they limit the rate.
    """
    gpu = min(DECODED * cores(), H100 / seconds)
    return {CPU: Speed(0.2, cores() / (seconds + 1 / DECODED)), GPU: Speed(4.5, gpu)}


def available() -> bool:
    """Return whether this ONNX Runtime is one for a GPU."""
    return providers.DEVICES[GPU][0] in onnxruntime.get_available_providers()


class AutomaticSession(Session):
    """A graph on the CPU, and from then on when a GPU promises to be done first, there."""

    def __init__(self, file: Path, open_on: Callable[[str, int], OnnxSession]) -> None:
        """Open it on the CPU; `open_on` opens it on a device for so many images. Raises what that raises."""
        self.file, self._open_on, self._images, self._settled = file, open_on, 0, False
        self._opened = {CPU: open_on(CPU, 0)}
        self._use(CPU, 0)
        opened = self._opened[CPU]
        self.input, self.outputs, self.metadata = opened.input, opened.outputs, opened.metadata

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        if (device := self.device) != CPU:
            try:
                return self._opened[device].run(array, outputs)
            except ResourceError as error:
                self._give_up(error)
        its = self._opened[GPU].layout if array.ndim == 2 else None  # of rows that were meant for a GPU, which failed
        return self._opened[CPU].run(array if its is None else resize(array, its), outputs)

    @property
    def opened(self) -> OnnxSession:
        """The graph on the device in use."""
        return self._opened[self.device]

    def close(self) -> None:
        for session in self._opened.values():
            session.close()

    def settle(self, images: int, device: str = "") -> str:
        """Take the device that has so many images done first, or the one that is named, for good; return its name."""
        self._take(device or self._best(images), images)
        self._settled = True
        return self.device

    @contextmanager
    def running(self, images: int) -> Iterator[Callable[[int], object]]:
        """Take the device that has so many images done first; yield what is told of each batch that is done.

        What was done before counts as much as what is to come: a job of many parts is worth a start as well.
        """
        self._images += images
        work, began = self._images, time.perf_counter()
        best = self.device if self._settled else self._best(work)
        started = best in self._opened
        self._take(best, work)
        done = [(0, began)]
        yield lambda more: done.append((more, time.perf_counter()))
        later = sum(more for more, _ in done[2:])
        if later >= NOTED and self.device == best and best in (CPU, GPU):
            start = self._speed(best).start if started or work >= providers.MANY else done[1][1] - began
            self._note(best, Speed(start, later / max(done[-1][1] - done[1][1], 1e-6)))

    def _use(self, device: str, images: int) -> None:
        if device not in self._opened:
            self._opened[device] = self._open_on(device, images)
        self.device, self.workers = device, self._opened[device].workers
        self.batch_size = self._opened[device].batch_size

    def _take(self, device: str, images: int) -> None:
        """Use a device, or the CPU if it can't be used."""
        try:
            self._use(device, images)
        except ResourceError as error:
            self._give_up(error)

    def _give_up(self, error: ResourceError) -> None:
        if self._gpu:
            warnings.warn(f"{error.what}; the CPU is used", TlkitNote, stacklevel=2)
        self._gpu = False
        self._use(CPU, 0)

    def _best(self, images: int) -> str:
        """Return the device that has so many images done first; a GPU is looked for if it may be worth it."""
        if images <= FEW:
            return CPU
        seconds = {CPU: self._speed(CPU).seconds(images, started=True)}
        if (seconds[CPU] >= WORTH or GPU in self._opened) and self._gpu:
            seconds[GPU] = self._speed(GPU).seconds(images, started=GPU in self._opened)
        best = min(seconds, key=seconds.__getitem__)
        if best != self.device:
            expected = " and ".join(f"{each:.1f} s on {name}" for name, each in seconds.items())
            warnings.warn(f"device {best}: {images:,} images take about {expected}", TlkitNote, stacklevel=2)
        return best

    @cached_property
    def _gpu(self) -> bool:
        """True if there is a GPU with kernels for the graph, which starts as far as is known."""
        with suppress(ResourceError):
            cuda.gpu()
            check_kernels(self.file, GPU)
            return True
        return False

    def _speed(self, device: str) -> Speed:
        return self.noted(device) or self._assumed[device]

    @cached_property
    def _assumed(self) -> dict[str, Speed]:
        """The speeds where none is known, by the time of one black image on the CPU."""
        session, began = self._opened[CPU], time.perf_counter()
        session.run(session.black(1))
        return assumed((time.perf_counter() - began) * cores() / session.workers)

    def noted(self, device: str) -> Speed | None:
        """Return the speed on a device that was noted for this graph, or None."""
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):  # none, or another version's
            facts = parse_json(self._record(device).read_bytes())
            speed = Speed(float(facts["start"]), float(facts["rate"]))
            return speed if speed.start >= 0 and 0 < speed.rate < math.inf else None
        return None

    def _note(self, device: str, speed: Speed) -> None:
        with suppress(ResourceError), files.atomic_file(self._record(device)) as temporary:  # else it is measured again
            temporary.write_text(json.dumps(asdict(speed)), encoding="utf-8")

    @cached_property
    def _digest(self) -> str:
        return files.sha256(self.file)

    def _record(self, device: str) -> Path:
        """Return the file with a speed, which holds for the graph, the machine and the versions."""
        identity = f"{self._digest} {config.machine()}"
        if device == GPU:
            identity += f", {cuda.gpu()}, CUDA {getattr(onnxruntime, 'cuda_version', '')}"
        return files.cache_dir(SPEEDS) / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
