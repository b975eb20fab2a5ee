"""Damage by plan: a kill before each step that a writer takes on the disk, mutated files, and two at once.

A step is a call that makes something durable, renames or removes. `states` runs a writer once and copies the folder
before every step: each copy is what a kill at that moment leaves. `forked` runs a function in a process of its own,
which `kill_at` ends at a step, and `finish` where it hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.kit.forks import renew_threads
from tlkit.util import temporaries

STEPS = ("fsync", "replace", "rename", "unlink", "remove", "rmdir")  # of the module `os`
ASLEEP, BUSY = 20.0, 100.0  # seconds that a process may do nothing, and of CPU time that it may take
HANGS = 124

Step = Callable[[], None]

_acts: list[Step] = []  # at most one, while steps are watched
_watching: list[int] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which can't be taken off again: a file that is opened to be written is a step as well."""
    if _acts and event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        _acts[0]()


@contextlib.contextmanager
def before_each_step(act: Step) -> Iterator[None]:
    """Call `act` before every step of this process; steps of `act` itself are its own."""
    originals = {name: getattr(os, name) for name in STEPS}
    exchange, busy = temporaries.exchange, list[int]()

    def once() -> None:
        if not busy:
            busy.append(1)
            try:
                act()
            finally:
                busy.pop()

    def hooked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            once()
            return function(*args, **kwargs)

        return call

    if not _watching:
        sys.addaudithook(_watch)
        _watching.append(1)
    for name, function in originals.items():
        setattr(os, name, hooked(function))
    temporaries.exchange = hooked(exchange)
    _acts.append(once)
    try:
        yield
    finally:
        _acts.clear()
        temporaries.exchange = exchange
        for name, function in originals.items():
            setattr(os, name, function)


def states(root: Path, write: Callable[[], object], copies: Path) -> list[Path]:
    """Run a writer; return a copy of `root` for each different state in which a kill would have left it."""
    found: dict[object, Path] = {}

    def keep() -> None:
        seen = tuple(sorted((str(p.relative_to(root)), p.lstat().st_size, p.lstat().st_ino) for p in root.rglob("*")))
        if seen not in found:
            found[seen] = copies / str(len(found))
            shutil.copytree(root, found[seen], symlinks=True)

    with before_each_step(keep):
        write()
    keep()
    return list(found.values())


@contextlib.contextmanager
def everybody_gone() -> Iterator[None]:
    """Take every process for ended, as after a kill: this one made the temporary files of a copied state."""
    began = temporaries._start
    own = began(os.getpid())
    temporaries._start = lambda _: own if sys._getframe(1).f_code.co_name == "prefix" else None
    try:
        yield
    finally:
        temporaries._start = began


def kill_at(number: int) -> contextlib.AbstractContextManager[None]:
    """End this process before its step of that number, as the system does when it is out of memory."""
    left = [number]

    def count() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    return before_each_step(count)


def start(function: Callable[[], object]) -> int:
    """Run a function in a process of its own, forked from this one; return its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        faulthandler.enable()
        renew_threads()
        result = function()
        code = result if isinstance(result, int) else 0
    except BaseException:  # noqa: BLE001 - whatever it is, the other process goes on
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Watch:
    """Tell a process that hangs from one that gets no processor because others have them."""

    def __init__(self, pid: int, asleep: float = ASLEEP, busy: float = BUSY) -> None:
        self.pid, self.asleep, self.busy, self._last = pid, asleep, busy, 0.0
        self.again()

    def again(self) -> None:
        """Count from now on."""
        self._spent, _ = self._look()
        self._moved, self._last = time.monotonic(), self._spent

    def hangs(self) -> bool:
        """Return True if it has slept for too long, or computed for too long."""
        spent, ready = self._look()
        if ready or spent != self._last:
            self._moved, self._last = time.monotonic(), spent
        return time.monotonic() - self._moved > self.asleep or spent - self._spent > self.busy

    def end(self) -> None:
        """End it; the stacks of its threads are printed."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGABRT)
            time.sleep(0.5)
            os.kill(self.pid, signal.SIGKILL)

    def _look(self) -> tuple[float, bool]:
        """Return its CPU time in seconds, and True if one of its threads could go on or waits for the disk.

        A system without these files says nothing, and nothing hangs there.
        """
        place = Path(f"/proc/{self.pid}")
        try:
            spent = sum(map(int, _fields(place)[11:13])) / os.sysconf("SC_CLK_TCK")
            return spent, any(_fields(task)[0] in (b"R", b"D") for task in place.glob("task/*"))
        except OSError:  # it has ended, or one of its threads
            return self._last, True


def _fields(process: Path) -> list[bytes]:
    """Return what the system says of a process or thread after its name."""
    return (process / "stat").read_bytes().rpartition(b")")[2].split()


def finish(pid: int) -> int:
    """Wait for a process; return its exit code, negative for a signal, or `HANGS` if it had to be ended."""
    watch, pause = Watch(pid), 0.002
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if pause > 0.05 and watch.hangs():
            watch.end()
            os.waitpid(pid, 0)
            return HANGS
        time.sleep(pause)
        pause = min(0.1, pause * 1.1)


def forked(function: Callable[[], object]) -> int:
    """Run a function in a process of its own and wait for it, see `finish`."""
    return finish(start(function))


def mutate(content: bytes, chance: Random) -> bytes:
    """Lose some bits, a stretch of bytes or the end of a file."""
    if not content:
        return b"?"
    changed = bytearray(content)
    place, kind = chance.randrange(len(changed)), chance.randrange(5)
    if kind == 0:
        changed[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        for _ in range(50):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
    elif kind == 2:
        changed[place : place + 500] = bytes(len(changed[place : place + 500]))
    elif kind == 3:
        changed[place:place] = chance.randbytes(chance.randrange(1, 64))
    else:
        del changed[place:]
    return bytes(changed) if bytes(changed) != content else content + b"\0"


def mutate_text(content: bytes, chance: Random) -> bytes:
    """Exchange a value of JSON for another, or mutate its bytes."""
    if chance.randrange(2):
        return mutate(content, chance)
    words = [b"[" * 2000, b'"\\ud800"', *b'" [ { null -1 1e999 NaN \xff {} [] ""'.split()]
    colon = content.find(b":", chance.randrange(len(content) or 1))
    if colon < 0:
        return mutate(content, chance)
    end = min((at for mark in (b",", b"}", b"]") if (at := content.find(mark, colon)) > 0), default=len(content))
    return content[: colon + 1] + chance.choice(words) + content[end:]
