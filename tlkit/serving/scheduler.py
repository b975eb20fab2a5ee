"""Batches without a timer: a free worker takes what is queued, up to the best batch size.

An idle server adds no latency, and load forms batches by itself. A large request is run in parts, and small ones
together. A request that was abandoned, or whose deadline has passed, is dropped before it runs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tlkit.errors import TlkitError
from tlkit.plugin.contract import Session
from tlkit.serving.protocol import ProtocolError

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs of a request by name, and the seconds that it was decoded, waited and ran."""

    arrays: Arrays
    decoded: float
    queued: float
    ran: float


@dataclass(eq=False, slots=True)
class Job:
    """Images `(N, S, S, 3)` uint8 of one request on their way through the queue, which they enter once decoded.

    `future` gets an `Answer`, a ProtocolError or the error of the session.
    """

    images: NDArray[np.uint8]
    outputs: tuple[str, ...]
    deadline: float  # by time.monotonic
    future: Future[Answer] = field(default_factory=Future)
    abandoned: bool = False  # nobody waits for the answer any more
    created: float = field(default_factory=time.monotonic)
    queued: float = 0.0  # when it entered the queue
    started: float = 0.0
    ran: float = 0.0
    taken: int = 0  # images that a worker has, or had
    done: int = 0
    parts: dict[int, Arrays] = field(default_factory=dict)  # by the position of their first image

    def fail(self, error: BaseException) -> None:
        """Give it up, all parts of it."""
        self.abandoned = True
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


Part = tuple[Job, int, int]  # a job, and the images of it from here to there


class Scheduler:
    """A bounded queue before one session, and the threads that empty it. `observe` is told size and time of a batch.

    `workers` threads call the session concurrently, `session.workers` of them by default.
    """

    def __init__(self, session: Session, limit: int, observe: Callable[[int, float], object] | None = None) -> None:
        self.session = session
        self._limit, self._observe = limit, observe
        self._held = 0  # images of requests that are not answered yet
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"serve-{number}", daemon=True)
            for number in range(session.workers)
        ]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def admitted(self, images: int) -> Iterator[None]:
        """Hold room for the images of a request, from before they are decoded. Raises ProtocolError if there is none.

        A request that is larger than the queue is admitted when nothing else is there.
        """
        with self._changed:
            if self._closed or (self._held and self._held + images > self._limit):
                raise ProtocolError(503, "the server is busy; try again", reason="busy", retry_after=1)
            self._held += images
        try:
            yield
        finally:
            with self._changed:
                self._held -= images

    @property
    def full(self) -> bool:
        """Return true if not even one image is admitted."""
        return self._held >= self._limit

    @property
    def held(self) -> int:
        """Number of images of requests that are not answered yet."""
        return self._held

    def submit(self, job: Job) -> None:
        """Queue a job, which gets a ProtocolError where nothing is run any more."""
        job.queued = time.monotonic()
        with self._changed:
            if not self._closed:
                self._queue.append(job)
                self._changed.notify()
                return
        job.fail(ProtocolError(503, "the server is stopping", reason="busy", retry_after=1))

    def close(self) -> None:
        """Run what is queued, end the threads and close the session."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self.session.close()

    def _work(self) -> None:
        while parts := self._take():
            started = time.monotonic()
            try:
                arrays = self._run(parts)
            except (TlkitError, MemoryError, RuntimeError, ValueError) as error:
                for job in dict.fromkeys(job for job, _, _ in parts):
                    job.fail(error)
                continue
            seconds = time.monotonic() - started
            if self._observe is not None:
                self._observe(sum(stop - start for _, start, stop in parts), seconds)
            self._deliver(parts, arrays, started, seconds)

    def _take(self) -> list[Part]:
        """Wait for work; return the parts of the next batch, or nothing once the queue is closed and empty."""
        with self._changed:
            while True:
                parts, room = list[Part](), self.session.batch_size
                while self._queue and room:
                    job = self._queue[0]
                    if job.abandoned or job.future.done() or time.monotonic() > job.deadline:
                        self._queue.popleft()
                        job.fail(ProtocolError(504, "the deadline has passed", reason="deadline"))
                        continue
                    count = min(room, len(job.images) - job.taken)
                    parts.append((job, job.taken, job.taken + count))
                    job.taken += count
                    room -= count
                    if job.taken == len(job.images):
                        self._queue.popleft()
                if parts or self._closed:
                    if self._queue:
                        self._changed.notify()
                    return parts
                self._changed.wait()

    def _run(self, parts: list[Part]) -> Arrays:
        outputs = list(dict.fromkeys(name for job, _, _ in parts for name in job.outputs))
        images = [job.images[start:stop] for job, start, stop in parts]
        return self.session.run(images[0] if len(images) == 1 else np.concatenate(images), outputs)

    def _deliver(self, parts: list[Part], arrays: Arrays, started: float, seconds: float) -> None:
        position = 0
        for job, start, stop in parts:
            rows = slice(position, position + stop - start)
            position = rows.stop
            with self._changed:  # parts of one job may end at the same time
                job.parts[start] = {name: arrays[name][rows] for name in job.outputs}
                job.started = job.started or started
                job.ran += seconds
                job.done += stop - start
                complete = job.done == len(job.images)
            if complete and not job.future.done():
                ordered = [job.parts[start] for start in sorted(job.parts)]
                whole = ordered[0]
                if len(ordered) > 1:
                    whole = {name: np.concatenate([part[name] for part in ordered]) for name in job.outputs}
                times = (job.queued - job.created, job.started - job.queued, job.ran)
                answer = Answer(whole, *times)
                if job.future.set_running_or_notify_cancel():
                    job.future.set_result(answer)
