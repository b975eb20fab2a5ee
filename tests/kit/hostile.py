"""Damage by plan: a kill before each step that a writer takes on the disk, mutated files, and two at once.

A step is a call that makes something durable, renames or removes. `states` runs a writer once and copies the folder
before every step: each copy is what a kill at that moment leaves. `forked` runs a function in a process of its own,
which `kill_at` ends at a step.
"""

from __future__ import annotations

import contextlib
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

from tlkit.util import temporaries

STEPS = ("fsync", "replace", "rename", "unlink", "remove", "rmdir")  # of the module `os`
LIMIT = 120  # seconds for a forked function

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
        result = function()
        code = result if isinstance(result, int) else 0
    except BaseException:  # noqa: BLE001 - whatever it is, the other process goes on
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def finish(pid: int, limit: float = LIMIT) -> int:
    """Wait for a process; return its exit code, negative for a signal, or 124 if it had to be ended."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 124


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
