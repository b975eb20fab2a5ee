"""Report the progress of a TensorRT build, and stop it at Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tlkit.plugin.contract import Progress, Tick

Built = TypeVar("Built")


def watch(trt: Any, what: str, progress: Progress) -> Any:
    """Return a progress monitor: a bar per outermost phase, with the step of the innermost one beside it.

    The builder continues after each step unless `stopped` is set.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False
            self._lock = threading.Lock()  # the builder calls from several threads
            self._bars: dict[str, Tick] = {}
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase_name] = num_steps
                if parent_phase is None:
                    self._bars[phase_name] = progress(f"{what}: {phase_name[:1].lower()}{phase_name[1:]}", num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._bars:
                    self._bars[phase_name](1)
                for bar in self._bars.values() if phase_name not in self._bars else ():
                    bar(0, f"{phase_name} {step + 1}/{self._steps.get(phase_name, step + 1)}")
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._bars.pop(phase_name, None)

    return Monitor()


def stoppable(build: Callable[[], Built], monitor: Any) -> Built:
    """Return the result of `build`, which runs in another thread, as Python handles signals in this one.

    A build in this thread would see Ctrl-C only at its end, or inside TensorRT's own code, which does not handle Python
    exceptions. So the build is told to stop, and KeyboardInterrupt is raised when it has.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="tlkit-build")
    try:
        return pool.submit(build).result()
    except BaseException:
        monitor.stopped = True
        raise
    finally:
        pool.shutdown()
