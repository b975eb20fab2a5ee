"""Temporary files and folders whose names say whose they are, and the last step of writing: taking a place.

    .NAME.PID-START.xxxxxxxx.part      .NAME.PID-START.xxxxxxxx.old

START is the time at which the process began, so that a later process of the same number is not taken for it. `sweep`
removes what a process left that is gone, and gives a folder that was set aside its place back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: an open file can't be removed there anyway
    fcntl = None  # type: ignore[assignment]

PART, ASIDE = ".part", ".old"
_NAME = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<start>\d+)\.\w{8}\.(part|old)", re.DOTALL)
_HERE, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2  # AT_FDCWD and flags of renameat2(2) and renamex_np(2)
_TAKEN = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)  # somebody else took or gave the place in the meantime
_TRIES = 100  # to take a place that others take at the same time


def prefix(path: Path) -> str:
    """Return the beginning of the name of a temporary file for `path` that this process writes."""
    return f".{path.name}.{os.getpid()}-{_start(os.getpid())}."


def sweep(folder: Path) -> None:
    """Remove temporary files whose process is gone; put a folder back that was set aside and never replaced."""
    with suppress(OSError):
        left = [(entry.path, found) for entry in os.scandir(folder) if (found := _NAME.fullmatch(entry.name))]
        for path, found in left:
            if _is_gone(Path(path), int(found["pid"]), int(found["start"])):
                _clear(Path(path), folder / found["name"])


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock a temporary file or folder of this process: its number says nothing in another container or machine."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        flock(descriptor)
        yield
    finally:
        os.close(descriptor)


def flock(descriptor: int, *, unknown: bool = True) -> bool:
    """Lock an open file until it is closed; False if another holds it, `unknown` if this file system can't tell."""
    if fcntl is None:
        return unknown
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unknown
    return True


def wait_for(descriptor: int, *, alone: bool) -> None:
    """Lock an open file until it is closed, once no other holds it, or only such as are not `alone`; if that works."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)


def take_place(temporary: Path, path: Path) -> None:
    """Rename a folder to `path`; a folder there changes places with it, and is removed.

    Where the system can't exchange two folders in one step, the one before is set aside first and removed last.
    """
    for _ in range(_TRIES):
        for take in (_replace, os.rename):  # the latter where nothing is in its place
            try:
                take(temporary, path)
            except OSError as error:
                if error.errno not in _TAKEN or not temporary.exists():
                    raise
            else:
                return
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system can't. Raises FileNotFoundError."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE)
    elif sys.platform == "darwin":
        failed = libc.renamex_np(*names, _RENAME_SWAP)
    else:
        return False
    if failed and ctypes.get_errno() == errno.ENOENT:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(other))
    return not failed


def _replace(temporary: Path, path: Path) -> None:
    """Rename a folder to `path` in place of the one that is there. Raises OSError."""
    if exchange(temporary, path):
        return
    aside = temporary.with_suffix(ASIDE)
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        try:
            os.rename(aside, path)
        except OSError as error:
            if error.errno in _TAKEN:  # else it is all there is, and a later look takes it back
                shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _clear(path: Path, original: Path) -> None:
    with suppress(OSError):
        if path.suffix == ASIDE and not original.exists():
            os.rename(path, original)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _is_gone(path: Path, pid: int, start: int) -> bool:
    """Return True if no process writes a temporary file: neither its own, nor one that this system can't see."""
    if fcntl is None or _start(pid) == start:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        return False
    try:
        return flock(descriptor, unknown=False)
    finally:
        os.close(descriptor)


def _start(pid: int) -> int | None:
    """Return the time at which a process began, in ticks of the system; 0 if it does not say, None without process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, ValueError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return 0
