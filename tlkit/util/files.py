"""Files written whole or not at all, hashes, and the place of the cache."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from tlkit.errors import ResourceError, UsageError, one_line

CACHE_VARIABLE = "TLKIT_CACHE"

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # a letter alone is a drive of Windows


def cache_dir(*parts: str) -> Path:
    """A directory below the cache, made on demand; `TLKIT_CACHE` names another place than the system's own."""
    root = Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("tlkit", appauthor=False))
    path = root.joinpath(*parts)
    with explained(path, do=f"set {CACHE_VARIABLE} to a directory that can be written"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a path; raises UsageError for the address of something that is not on this machine."""
    text = os.fspath(path)
    if _ADDRESS.match(text):
        raise UsageError("only local files and folders can be read or written", file=text, do="download it first")
    return Path(text)


def quoted(path: Path) -> str:
    """A path as one would type it in a shell, on one line and never taken for an option."""
    text = f"./{path}" if str(path).startswith("-") else str(path)
    if one_line(text) == text:
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{one_line(escaped)}'"  # how shells spell a line break inside a word


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def explained(path: Path, *, do: str | None = None) -> Iterator[None]:
    """Turn the operating system's refusals into errors that name the file and what to do."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "free some space and run the command again",
            errno.EDQUOT: "free some space and run the command again",
            errno.EACCES: "choose a place you may write to",
            errno.EPERM: "choose a place you may write to",
            errno.EROFS: "choose a place that is not read-only",
            errno.EISDIR: "choose the name of a file",
            errno.ENAMETOOLONG: "choose a shorter name",
            errno.ENOTDIR: "choose a place inside a folder",
            errno.EFBIG: "choose a place that takes larger files, or raise the limit that is set on them",
        }
        reason = (error.strerror or str(error)).lower()
        raise ResourceError(f"can't write: {reason}", file=path, do=do or advice.get(error.errno or 0)) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; on leaving without an error it becomes `path`, durably."""
    with explained(path):
        if path.is_dir():  # found out before the work, not after it
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with explained(path):
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary directory beside `path` to fill; on leaving without an error it becomes `path`, durably.

    An existing directory with something in it is refused, or with `replace` exchanged in one step.
    """
    if not replace:
        check_new(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield temporary
        with explained(path):
            temporary.chmod(0o777 & ~_umask())
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _sync(Path(folder, name))
                _sync(Path(folder))
            _take_place(temporary, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(path: Path) -> None:
    """Refuse an output that exists already (an empty directory is as good as none)."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise UsageError("it exists already", file=path, do="choose another -o, or remove it first")


def check_writable(path: Path) -> None:
    """Find out before a long job, not after it, whether `path` can be made."""
    parent = next(p for p in path.absolute().parents if p.exists())
    with explained(path), tempfile.TemporaryFile(dir=parent):
        pass


def _take_place(temporary: Path, path: Path) -> None:
    """Rename onto `path`; what was there steps aside first and is removed last, so a whole one is always on disk."""
    aside = temporary.with_suffix(".old")
    if path.exists():
        os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's umask; reading it means setting it, so it is put back at once."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
