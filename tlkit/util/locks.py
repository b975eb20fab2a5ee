"""One run per output: a lock file beside it that names its owner, held until the run ends or its process is gone."""

from __future__ import annotations

import errno
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tlkit.errors import ResourceError, UsageError
from tlkit.util.files import check_writable, translate_os_errors
from tlkit.util.schema import parse_json
from tlkit.util.temporaries import flock, sweep

BUSY = "another run writes it"
_LONGEST = 200  # characters of a command that are shown


@contextmanager
def claim(output: Path | None, *, inside: bool = False) -> Iterator[None]:
    """Hold the lock of an output, if there is one: `.NAME.lock` beside it, or `.lock` `inside` a folder that exists.

    Before that, an output without a name, such as `.` and `/`, is a UsageError, one that can't be written is a
    ResourceError, and what killed runs left beside it is removed.
    Folders above it are created, and removed again if nothing is in them at the end. Another run that holds the lock is
    a ResourceError that names its process, machine and command.
    """
    if output is None:
        yield
        return
    if not inside and output.name in ("", ".."):
        do = "go to the folder that it is in, and give its name"
        raise UsageError("an output is written under its own name", file=output, do=do)
    file = output / ".lock" if inside else output.with_name(f".{output.name}.lock")
    with translate_os_errors(output):
        created = _create(file.absolute().parent)
    try:
        if not inside:
            check_writable(output)
        sweep(file.parent)
        descriptor = _acquire(file, output)
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink()  # while it is held: who waits for it opens a new one
            os.close(descriptor)
    finally:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()


def _create(folder: Path) -> list[Path]:
    """Create a folder and those above it; return what was created, the deepest first."""
    missing = []
    while not folder.exists() and folder.parent != folder:
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
    return missing


def _acquire(file: Path, output: Path) -> int:
    """Return the descriptor of a lock file that is held."""
    while True:
        with translate_os_errors(output):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not flock(descriptor):
                raise _busy(output, _owner(descriptor, file))
            _owner(descriptor, file)  # what a killed run left, or a file of somebody else
            if _is_same(descriptor, file):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_own(), ensure_ascii=True).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed it in the meantime


def _own() -> dict[str, Any]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:_LONGEST]
    since = time.strftime("%Y-%m-%d %H:%M")
    return {"tlkit lock": 1, "pid": os.getpid(), "host": platform.node(), "since": since, "command": command}


def _owner(descriptor: int, file: Path) -> dict[str, Any]:
    """Return who wrote a lock file, empty where it does not say; a UsageError for a file that is no lock."""
    content = os.pread(descriptor, 10_000, 0)
    try:
        found = parse_json(content or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict) or (found and "tlkit lock" not in found):
        raise UsageError("tlkit needs this name for a lock, and did not write this file", file=file, do="move it away")
    return found


def _busy(output: Path, owner: dict[str, Any]) -> ResourceError:
    who = BUSY
    if owner:
        where = f"process {owner.get('pid')} on {owner.get('host')}"
        who += f": {where}, since {owner.get('since')}: {owner.get('command')}"
    return ResourceError(who, file=output, do="wait until it has finished")


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file, follow_symlinks=False))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
