"""All cores for a call that is alone, and a core for each of several: the best of both for latency and throughput."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.plugin.contract import Session
from tlkit.runtime.providers import SHAPES
from tlkit.runtime.session import OnnxSession, Wrapped

SPIN = 200  # microseconds: of the time of two cores that spinning for longer takes from others, it gains nothing
LARGEST = 2**28  # bytes of a graph; beyond it, the memory of a second session is worth more than its speed


class AdaptiveSession(Wrapped):
    """A session with a core per call, and one with all cores for a single image while nothing else runs.

    A call is taken to be alone if the one before it was: under load, calls overlap.
    """

    def __init__(self, shared: Session, alone: Session) -> None:
        super().__init__(shared)
        self._alone = alone
        self._lock = threading.Lock()
        self._running = 0
        self._quiet = True  # whether no two calls ran at once since the last time that none did
        self._overlapped = False

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        with self._lock:
            self._running += 1
            self._overlapped |= self._running > 1
            session = self._alone if self._running == 1 and self._quiet and len(array) == 1 else self._session
        try:
            return session.run(array, outputs)
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._quiet, self._overlapped = not self._overlapped, False

    def close(self) -> None:
        super().close()
        self._alone.close()


def adapted(session: Session, images: NDArray[np.uint8]) -> Session:
    """Return a session that uses all cores for a call that is alone, if that gives the same for each image, to the bit.

    Otherwise, for an engine, a GPU or a large graph, it is the session as it was; a GPU prepares its kernels for each
    number of rows that it computes, or a request would wait for them.
    """
    if not isinstance(session, OnnxSession) or session.workers == 1:
        return session
    if session.device != "cpu":
        for rows in reversed(SHAPES):
            session.warm_up(rows)
        return session
    if session.file.stat().st_size > LARGEST:
        return session
    alone = OnnxSession(session.file, level=session.level, spin_us=SPIN)

    def same(image: NDArray[np.uint8]) -> bool:
        ours, theirs = session.run(image), alone.run(image)
        return all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in session.outputs)

    if all(same(images[number : number + 1]) for number in range(len(images))):
        return AdaptiveSession(session, alone)
    alone.close()
    return session
