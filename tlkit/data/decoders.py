"""Processes that decode images, where threads would wait for Python's lock.

A decoder reads a JSON line per task from its stdin, the paths of some images, and writes their pixels into memory that
it shares with its parent. The memory has no name, so nothing is left of it when both have ended, however that was; nor
does /dev/shm limit it, which has 64 MB in a container. A decoder ends when its stdin does.

Images per second on 16 cores of a Xeon, JPEGs of half a megapixel:

    threads      1       4       8      16
    decoded    370   1,252   2,006   1,656      16 processes: 4,283
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.data.decoding import UnreadableImage, read_file
from tlkit.data.memory import PROCESSES_VARIABLE
from tlkit.data.preprocessing import load
from tlkit.errors import ResourceError
from tlkit.plugin.contract import Preprocessing
from tlkit.util.resources import REFUSED, cores, own_environment

CORES, IMAGES = 6, 2000  # from which on processes are faster; they need half a second to start
TRIES = 2  # of a task whose decoder dies

Decoded = tuple[str, str | None]  # SHA-256 of a file in hex, "" if not requested; the reason why it is unreadable


def faster(images: int) -> bool:
    """Return True if processes decode so many images sooner than threads do, start included, and can be used."""
    return cores() >= CORES and images >= IMAGES and hasattr(os, "memfd_create")


class Decoders:
    """Processes that decode, and memory for `slots` batches of `batch_size` images."""

    def __init__(self, preprocessing: Preprocessing, batch_size: int, slots: int, processes: int) -> None:
        """Start them. Raises OSError if the system has no memory or no processes for it."""
        shape = (slots, batch_size, preprocessing.size, preprocessing.size, 3)
        self.start = {"shape": shape, "preprocessing": asdict(preprocessing)}
        self.processes = processes
        self._memory = os.memfd_create("tlkit")
        self._slots, self._idle = queue.SimpleQueue[int](), queue.SimpleQueue["subprocess.Popen[bytes]"]()
        self._all: list[subprocess.Popen[bytes]] = []
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
    def decoded(self, paths: Sequence[Path], *, hashed: bool) -> Iterator[tuple[list[Decoded], NDArray[np.uint8]]]:
        """Yield what is known of some images, at most a batch, and uint8 `(N, S, S, 3)` of those that are readable.

        The array is valid inside the context. Raises ResourceError if the process dies of them again.
        """
        slot = self._slots.get()
        try:
            task = {"slot": slot, "hashed": hashed, "paths": list(map(os.fspath, paths))}
            found: list[Decoded] = [(digest, reason) for digest, reason in self._run(task, paths)]
            yield found, self._arrays[slot, : sum(reason is None for _, reason in found)]
        finally:
            self._slots.put(slot)

    def close(self) -> None:
        """End all processes, whatever they do."""
        for process in self._all:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    stream.close()  # type: ignore[union-attr]  # both are pipes
        os.close(self._memory)

    def _run(self, task: Mapping[str, Any], paths: Sequence[Path]) -> list[Any]:
        process, code = self._idle.get(), 0
        try:
            for _ in range(TRIES):
                if (answer := _answer(process, task)) is not None:
                    return answer
                code = process.wait()
                process = self._open()
        except OSError as error:
            raise ResourceError(f"a process that decodes images can't be started: {error}", do=REFUSED) from error
        finally:
            self._idle.put(process)
        what = f"a process that decodes images ended {TRIES} times with exit code {code}, at this file or the next"
        raise ResourceError(what, file=paths[0], do="free some memory, use fewer --threads, or remove the image")

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
        self._all.append(process)
        send(process, self.start)
        return process


def _answer(process: subprocess.Popen[bytes], task: Mapping[str, Any]) -> list[Any] | None:
    """Return what a decoder says of a task; None if it died."""
    send(process, task)
    line = process.stdout.readline() if process.stdout else b""
    return json.loads(line) if line.endswith(b"\n") else None


def send(process: subprocess.Popen[bytes], facts: Mapping[str, Any]) -> None:
    """Write facts as a line of JSON to the stdin of a process; that it died is told by reading from it."""
    with suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.write(json.dumps(facts).encode() + b"\n")
            process.stdin.flush()


def _mapped(memory: int, shape: Sequence[int]) -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(memory, int(np.prod(shape))), np.uint8).reshape(shape)


def main(memory: int) -> None:
    """Decode what comes on stdin."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what native code prints is no answer
    start = json.loads(sys.stdin.readline())
    arrays, preprocessing = _mapped(memory, start["shape"]), Preprocessing(**start["preprocessing"])
    for line in sys.stdin:
        task = json.loads(line)
        answer, slot, row = list[Decoded](), arrays[task["slot"]], 0
        for path in task["paths"]:
            digest, reason = "", None
            try:
                content = read_file(Path(path))
                digest = hashlib.sha256(content).hexdigest() if task["hashed"] else ""
                slot[row] = load(content, preprocessing)
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
