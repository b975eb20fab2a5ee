"""The end of a command: by a signal that plugins can't hold up, or by its exit code whatever threads they left."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterable
from typing import Any, NoReturn

PROGRAM = "tlkit"
PATIENCE = 5.0  # seconds that the code of a plugin has to end after a signal
WORKER_PATIENCE = 25.0  # seconds more in another thread: a server answers what is under way
THREAD_PATIENCE = 1.0  # seconds that a thread of a plugin has to end
_WORDS = {  # by number
    int(getattr(signal, name)): word
    for name, word in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "terminated"))
    if hasattr(signal, name)
}


class Interrupted(KeyboardInterrupt):
    """The process was asked to end by a signal; as with Ctrl-C, nothing half-written stays behind."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def end_on_signals() -> None:
    """Have SIGTERM and SIGHUP end the process as Ctrl-C does, also where a plugin's code doesn't let them."""
    for number in _WORDS:
        if number != signal.SIGINT and signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, _interrupt)
    if os.name != "posix":  # signals come by other ways there
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()


def told(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return the line that says how a command was interrupted, and its exit code; a plugin's code is named."""
    number = error.number if isinstance(error, Interrupted) else signal.SIGINT
    frames = traceback.walk_tb(error.__traceback__)
    _, place = _foreign(each for each in frames if each[0].f_code is not _interrupt.__code__)
    return _WORDS[number] + (f" in {place}" if place else ""), 128 + number


def leave(code: int) -> NoReturn:
    """End the process, also where a plugin left a thread running that would keep it for ever."""
    blame = _blame()
    left = blame.left_running(THREAD_PATIENCE) if blame else []
    gc.freeze()  # the interpreter looks through all objects for garbage at its end: most of a second with PyTorch
    if not left:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    _end(f"warning: {left[0]} running; it was ended", code)


def _interrupt(number: int, _frame: object) -> None:
    raise Interrupted(number)


def _blame() -> Any:
    return sys.modules.get("tlkit.plugin.blame")  # without it, no plugin has run


def _watch(reading: int) -> None:
    """End the process where the code of a plugin goes on after a signal: native, or catching whatever is raised.

    The system writes the number of each signal to the pipe, whatever the main thread does. Only a call that was under
    way at the signal and still is ends the process: tlkit itself takes the time that it needs.
    """
    while received := os.read(reading, 1):
        number = received[0]
        before = [frame for frame, _ in _running()] if number in _WORDS else []
        for main_thread, patience in ((True, PATIENCE), (False, WORKER_PATIENCE)):
            if before:
                time.sleep(patience)
                running = (place for frame, place in _running(main_thread=main_thread) if place and frame in before)
                if place := next(running, ""):
                    _end(f"{_WORDS[number]} in {place}, which did not end", 128 + number)


def _end(line: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, f"{PROGRAM}: {line}\n".encode(errors="backslashreplace"))  # the stream may be locked
    os._exit(code)


def _running(*, main_thread: bool = False) -> list[tuple[types.FrameType, str]]:
    """Return the outermost call of a plugin in all threads or the main one, and its place if the plugin's code runs."""
    main = threading.main_thread().ident
    stacks = [
        reversed(list(traceback.walk_stack(frame)))
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - there is no other way
        if ident == main or not main_thread
    ]
    return [(frame, place) for frame, place in map(_foreign, stacks) if frame is not None]


def _foreign(frames: Iterable[tuple[types.FrameType, int]]) -> tuple[types.FrameType | None, str]:
    blame = _blame()
    found: tuple[types.FrameType | None, str] = blame.foreign(frames) if blame else (None, "")
    return found
