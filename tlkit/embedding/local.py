"""Executors on this machine: this process, or processes that each run one shard after the other.

A worker process reads JSON lines from its stdin, first what to open and then numbers of shards, and writes what happens
to its stdout. It ends when its stdin does, so none outlives a parent that is killed by more than a batch of images.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tlkit import errors
from tlkit.data.decoders import send
from tlkit.embedding.job import Job
from tlkit.embedding.manifest import Opened
from tlkit.embedding.shard import embed_shards, note_failure
from tlkit.errors import ResourceError, TlkitError
from tlkit.runtime.model import Model
from tlkit.util.resources import cores, own_environment

MODULE = "tlkit.worker"
TRIES = 3  # of a shard whose worker dies


Tick = Callable[[int], object]  # is called with the number of images that were embedded
Executor = Callable[[Job, Sequence[int], Tick], None]


def in_process(model: Model, places: Sequence[Opened]) -> Executor:
    """Return the executor that runs every shard here, with all threads."""

    def run(job: Job, shards: Sequence[int], tick: Tick) -> None:
        embed_shards(job, shards, model, places, tick)

    return run


@contextmanager
def started(workers: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield processes that import what workers need meanwhile; those that are in the list at the end are ended."""
    processes = list[subprocess.Popen[bytes]]()
    try:
        with suppress(OSError):  # who needs one that can't be started tries again
            for _ in range(min(workers, cores())):
                processes.append(_start())
        yield processes
    finally:
        for process in processes:
            process.terminate()
            process.communicate()


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-P", "-m", MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=own_environment()
    )


def in_processes(workers: int, start: Mapping[str, Any], ahead: list[subprocess.Popen[bytes]]) -> Executor:
    """Return the executor of several processes, first those `started` ahead; `start` is what each of them opens.

    A shard whose worker dies is given to a new one, three times in all; then it counts as failed, and the others go on.
    An error that a worker reports, such as a full disk, ends the job.
    """

    def run(job: Job, shards: Sequence[int], tick: Tick) -> None:
        pool = _Pool(job, shards, start, ahead)
        threads = [threading.Thread(target=pool.serve, daemon=True) for _ in range(min(workers, len(shards)))]
        for thread in threads:
            thread.start()
        try:
            running = len(threads)
            while running:
                event = pool.events.get()
                if isinstance(event, TlkitError):
                    raise event
                if event is None:
                    running -= 1
                else:
                    tick(event)
        finally:
            pool.stop()
            for thread in threads:
                thread.join()

    return run


class _Pool:
    """State that the threads of an executor share; each of them minds one process."""

    def __init__(
        self, job: Job, shards: Sequence[int], start: Mapping[str, Any], ahead: list[subprocess.Popen[bytes]]
    ) -> None:
        self.job, self.start, self._ahead = job, start, ahead
        # Images that were embedded, the error that ends the job, or None: a thread has ended.
        self.events: queue.SimpleQueue[int | TlkitError | None] = queue.SimpleQueue()
        self._left: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()  # shard, and tries of it so far
        for shard in shards:
            self._left.put((shard, 0))
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped, self._dead = False, 0  # the latter: workers that died as they started

    def serve(self) -> None:
        process = None
        try:
            while not self._stopped:
                try:
                    shard, tries = self._left.get_nowait()
                except queue.Empty:
                    break
                process = process or self._open()
                if process is None:
                    self._left.put((shard, tries))
                    continue
                if self._run(process, shard):
                    continue
                code, process = self._close(process), None
                if self._stopped:
                    break
                if tries + 1 < TRIES:
                    self._left.put((shard, tries + 1))
                else:
                    note_failure(self.job, shard, f"its worker died {TRIES} times, last with exit code {code}")
        except OSError as error:
            what = f"a worker can't be started: {(error.strerror or str(error)).lower()}"
            self.events.put(ResourceError(what, do="use fewer --workers"))
        except TlkitError as error:
            self.events.put(error)
        finally:
            if process is not None:
                self._close(process)
            self.events.put(None)

    def _open(self) -> subprocess.Popen[bytes] | None:
        """Start a worker; None if it died, which as often as a shard is tried, one after the other, ends the job."""
        try:
            process = self._ahead.pop()
        except IndexError:
            process = _start()
        self._processes.add(process)
        send(process, self.start)
        for said in self._said(process):
            if "ready" in said:
                self._dead = 0
                return process
        code, self._dead = self._close(process), self._dead + 1
        if self._dead < TRIES:
            return None
        what = f"a worker ended with exit code {code} as it started"
        raise ResourceError(what, do="use fewer --workers, or --debug to see more")

    def _run(self, process: subprocess.Popen[bytes], shard: int) -> bool:
        """Have a worker run a shard; False if it died before it was done. Raises what it reports."""
        send(process, {"shard": shard})
        reported = 0
        for said in self._said(process):
            if "done" in said:
                return True
            reported += said["images"]
            self.events.put(said["images"])
        self.events.put(-reported)  # they will be embedded again
        return False

    @staticmethod
    def _said(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
        """Yield what a worker says; raises the error that it reports."""
        for line in process.stdout or ():
            try:
                said: dict[str, Any] = json.loads(line)
            except ValueError:  # it was killed as it wrote
                return
            if "error" in said:
                raise error_of(said["error"])
            yield said

    def _close(self, process: subprocess.Popen[bytes]) -> int:
        """End a worker that has nothing to do; return its exit code."""
        with suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._processes.discard(process)
        return code

    def stop(self) -> None:
        """End all workers at once; what they were writing is a temporary file that the next run removes."""
        self._stopped = True
        for process in list(self._processes):
            process.terminate()


def facts_of(error: TlkitError) -> dict[str, Any]:
    """Return an error as JSON values."""
    return {"class": type(error).__name__, "what": error.what, "file": error.file, "do": error.do}


def error_of(facts: Mapping[str, Any]) -> TlkitError:
    """Return the error that a worker reported."""
    found = getattr(errors, facts["class"], TlkitError)
    kind: type[TlkitError] = found if isinstance(found, type) and issubclass(found, TlkitError) else TlkitError
    return kind(facts["what"], file=facts["file"], do=facts["do"])
