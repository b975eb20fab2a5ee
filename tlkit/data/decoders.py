"""Processes that decode images, where threads would wait for Python's lock.

A decoder reads a JSON line per task from its stdin, the names of some images, and the bytes of those that are no files.
It writes their pixels into memory that it shares with its parent. The memory has no name, so nothing is left of it when
both have ended, however that was; nor does /dev/shm limit it, which has 64 MB in a container. A decoder ends when its
stdin does.

Images per second on 16 cores of a Xeon, JPEGs of half a megapixel:

    threads      1       4       8      16
    decoded    370   1,252   2,006   1,656      16 processes: 4,283

So threads come first, and are measured: per image, the time in which a thread neither runs nor is ready to. Processes
take over if that adds up to more than their start. The wait is kept for this machine, so that a later job begins with
processes.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from tlkit.data.decoding import UnreadableImage, read_file
from tlkit.data.memory import PROCESSES_VARIABLE
from tlkit.data.preprocessing import Source, load
from tlkit.data.resampling import layout, pack
from tlkit.errors import ResourceError
from tlkit.plugin.contract import Preprocessing
from tlkit.util.files import atomic_file, cache_dir
from tlkit.util.resources import REFUSED, own_environment, processor_info
from tlkit.util.schema import parse_json

START = 0.5  # seconds until processes decode, which threads would already do
PROBED = 256  # images by which the waits of threads are measured, at least
WAITS = "waits"  # in the cache
TRIES = 2  # of a task whose decoder dies

Given = tuple[str, bytes | None]  # path of a file, or the name and the content of an image
Decoded = tuple[str, str | None]  # SHA-256 of the content in hex, "" if not requested; the reason why it is unreadable


class Waits:
    """The time that threads which decode wait for each other, per image, as it was last measured on this machine."""

    def __init__(self, threads: int) -> None:
        self._threads, self._lock, self._images, self._seconds = threads, threading.Lock(), 0, 0.0

    def load(self, source: Source, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        """Do what `tlkit.data.preprocessing.load` does, and measure the wait."""
        delayed = _delayed()
        began = time.perf_counter() - time.thread_time()
        try:
            return load(source, preprocessing)
        finally:
            idle = time.perf_counter() - time.thread_time() - began
            with self._lock:
                self._images += 1
                self._seconds += max(0.0, idle - (_delayed() - delayed))

    @property
    def measured(self) -> float:
        """Seconds per image so far."""
        return self._seconds / max(1, self._images)

    def keep(self) -> None:
        """Keep what was measured."""
        with suppress(ResourceError), atomic_file(self._record) as temporary:
            temporary.write_text(json.dumps(self.measured), encoding="utf-8")

    def seconds(self) -> float | None:
        """Return the seconds per image that were kept, or None."""
        with suppress(OSError, ValueError, TypeError, ResourceError):
            seconds = float(parse_json(self._record.read_bytes()))
            return seconds if 0 <= seconds < math.inf else None
        return None

    def outlast(self, images: int) -> bool:
        """Return True if threads would wait longer, with so many images, than processes take to start here."""
        seconds = self.seconds() if hasattr(os, "memfd_create") else None
        return seconds is not None and seconds * images / self._threads > START

    @cached_property
    def _record(self) -> Path:
        facts = (processor_info("model name"), self._threads, platform.python_version(), PIL.__version__)
        return cache_dir(WAITS) / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"


def _delayed() -> float:
    """Return the seconds in which this thread was ready to run and other work had the processors; 0 if not known."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/thread-self/schedstat").read_text("utf-8").split()[1]) / 1e9
    return 0.0


class Decoders:
    """Processes that decode, and memory for `slots` batches of `batch_size` images, or of rows that `pack` makes."""

    def __init__(
        self, preprocessing: Preprocessing, batch_size: int, slots: int, processes: int, *, packed: bool = False
    ) -> None:
        """Start them. Raises OSError if the system has no memory or no processes for it."""
        self._shape = (preprocessing.size, preprocessing.size, 3)
        shape = (slots, batch_size, layout(preprocessing).length if packed else math.prod(self._shape))
        self.start = {"shape": shape, "preprocessing": asdict(preprocessing)}
        self.processes = processes
        self._memory = os.memfd_create("tlkit")
        self._slots, self._idle = queue.SimpleQueue[int](), queue.SimpleQueue["subprocess.Popen[bytes]"]()
        self.all: list[subprocess.Popen[bytes]] = []
        try:
            os.posix_fallocate(self._memory, 0, int(np.prod(shape)))
            self._arrays = _mapped(self._memory, shape)
            for _ in range(processes):
                self._idle.put(self._open())
        except BaseException:
            self.close()
            raise
        for slot in range(slots):
            self._slots.put(slot)

    @contextmanager
    def decoded(
        self, images: Sequence[Given], *, hashed: bool, packed: bool = False
    ) -> Iterator[tuple[list[Decoded], NDArray[np.uint8]]]:
        """Yield what is known of some images, at most a batch, and uint8 `(N, S, S, 3)` of those that are readable.

        Packed, they are rows. The array is valid inside the context. Raises ResourceError if the process dies of them
        again.
        """
        slot = self._slots.get()
        try:
            sizes = [(name, None if content is None else len(content)) for name, content in images]
            task = {"slot": slot, "hashed": hashed, "packed": packed, "images": sizes}
            found: list[Decoded] = [(digest, reason) for digest, reason in self._run(task, images)]
            rows = self._arrays[slot, : sum(reason is None for _, reason in found)]
            yield found, rows if packed else rows[:, : math.prod(self._shape)].reshape(-1, *self._shape)
        finally:
            self._slots.put(slot)

    def close(self) -> None:
        """End all processes, whatever they do."""
        for process in self.all:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    stream.close()  # type: ignore[union-attr]  # both are pipes
        os.close(self._memory)

    def _run(self, task: Mapping[str, Any], images: Sequence[Given]) -> list[Any]:
        process, code, contents = self._idle.get(), 0, [content for _, content in images if content]
        try:
            for _ in range(TRIES):
                if (answer := _answer(process, task, contents)) is not None:
                    return answer
                code = process.wait()
                process = self._open()
        except OSError as error:
            raise ResourceError(f"a process that decodes images can't be started: {error}", do=REFUSED) from error
        finally:
            self._idle.put(process)
        what = f"a process that decodes images ended {TRIES} times with exit code {code}, at this file or the next"
        raise ResourceError(what, file=images[0][0], do="free some memory, use fewer --threads, or remove the image")

    def _open(self) -> subprocess.Popen[bytes]:
        variables = {
            **own_environment(),
            PROCESSES_VARIABLE: str(self.processes * int(os.environ.get(PROCESSES_VARIABLE) or 1)),
        }
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", __name__, str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=variables,
            pass_fds=[self._memory],
            process_group=0,  # Ctrl-C is for the parent, which closes what it does not need
        )
        self.all.append(process)
        send(process, self.start)
        return process


def _answer(process: subprocess.Popen[bytes], task: Mapping[str, Any], contents: Sequence[bytes]) -> list[Any] | None:
    """Return what a decoder says of a task; None if it died."""
    send(process, task, contents)
    line = process.stdout.readline() if process.stdout else b""
    return json.loads(line) if line.endswith(b"\n") else None


def send(process: subprocess.Popen[bytes], facts: Mapping[str, Any], contents: Sequence[bytes] = ()) -> None:
    """Write facts as a line of JSON, and contents, to the stdin of a process; that it died is told by its answer."""
    with suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.writelines([json.dumps(facts).encode() + b"\n", *contents])
            process.stdin.flush()


def _mapped(memory: int, shape: Sequence[int]) -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(memory, int(np.prod(shape))), np.uint8).reshape(shape)


def main(memory: int) -> None:
    """Decode what comes on stdin."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what native code prints is no answer
    given = sys.stdin.buffer
    start = json.loads(given.readline())
    facts: dict[str, Any] = start["preprocessing"]
    facts |= {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
    arrays, preprocessing = _mapped(memory, start["shape"]), Preprocessing(**facts)
    for line in given:
        task = json.loads(line)
        answer, slot, row = list[Decoded](), arrays[task["slot"]], 0
        for name, size in task["images"]:
            digest, reason = "", None
            content = given.read(size or 0)
            try:
                content = read_file(Path(name)) if size is None else content
                digest = hashlib.sha256(content).hexdigest() if task["hashed"] else ""
                pixels = (pack if task["packed"] else load)(content, preprocessing).reshape(-1)
                slot[row, : len(pixels)] = pixels
                row += 1
            except UnreadableImage as error:
                reason = error.what
            answer.append((digest, reason))
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(BrokenPipeError):
        main(int(sys.argv[1]))
