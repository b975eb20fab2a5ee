"""A build that says how far it is and that Ctrl-C stops: what TensorRT tells its progress monitor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tlkit.plugin.contract import Progress, Tick

Built = TypeVar("Built")


def watch(trt: Any, what: str, progress: Progress) -> Any:
    """A progress monitor: a bar for every outermost phase, beside which stands the step of the innermost one.

    The builder asks it after each step whether to go on, which it may as long as `stopped` is not set.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False
            self._one_at_a_time = threading.Lock()  # the builder calls from several threads
            self._bars: dict[str, Tick] = {}
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._one_at_a_time:
                self._steps[phase_name] = num_steps
                if parent_phase is None:
                    self._bars[phase_name] = progress(f"{what}: {phase_name[:1].lower()}{phase_name[1:]}", num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._one_at_a_time:
                if phase_name in self._bars:
                    self._bars[phase_name](1)
                for bar in self._bars.values() if phase_name not in self._bars else ():
                    bar(0, f"{phase_name} {step + 1}/{self._steps.get(phase_name, step + 1)}")
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            with self._one_at_a_time:
                self._bars.pop(phase_name, None)

    return Monitor()


def stoppable(build: Callable[[], Built], monitor: Any) -> Built:
    """What `build` returns. It runs in a thread of its own, as signals come to Python in this one.

    A build in this thread would see Ctrl-C at its end only, or in the middle of TensorRT's own code, which knows no
    exceptions of ours. So it is told to stop, and what was pressed is raised once it has.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="tlkit-build")
    try:
        return pool.submit(build).result()
    except BaseException:
        monitor.stopped = True
        raise
    finally:
        pool.shutdown()
