"""Atomic files and folders, their hashes, `.npy` files, and the cache directory."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import platformdirs

from tlkit.errors import ResourceError, UsageError
from tlkit.util.temporaries import PART, held, prefix, sweep, take_place

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

CACHE_VARIABLE = "TLKIT_CACHE"

REMEDIES = {  # by errno
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

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # a letter alone is a drive of Windows


def cache_dir(*parts: str) -> Path:
    """Return a directory in the cache, created on demand; `TLKIT_CACHE` overrides the system's cache directory."""
    try:
        root = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("tlkit", appauthor=False)
        path = Path(root).expanduser().joinpath(*parts)
    except RuntimeError as error:  # of either, by the version of platformdirs
        do = f"set {CACHE_VARIABLE} to a directory that can be written"
        raise ResourceError("there is no home directory for the cache", do=do) from error
    with translate_os_errors(path, do=f"set {CACHE_VARIABLE} to a directory that can be written"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def is_address(path: str) -> bool:
    """Return whether a path is the address of something that may not be on this machine, such as s3://bucket/photos."""
    return _ADDRESS.match(path) is not None


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a path; raises UsageError for the address of something that is not on this machine."""
    text = os.fspath(path)
    if is_address(text):
        raise UsageError("only local files and folders can be read or written", file=text, do="download it first")
    return Path(text)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(file: Path | str) -> BufferedReader:
    """Open a file to read; raises OSError, without waiting, for a pipe, a device or a folder."""
    descriptor = os.open(file, _READ)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    return os.fdopen(descriptor, "rb")


def read_regular(file: Path | str) -> bytes:
    """Return the content of a file, with four calls of the system; raises OSError as `open_regular` does."""
    descriptor = os.open(file, _READ)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(file))
        content = os.read(descriptor, found.st_size + 1)
        # Its size changed, or is beyond what one call reads.
        while len(content) != found.st_size and (more := os.read(descriptor, 2**20)):
            content += more
        return content
    finally:
        os.close(descriptor)


def read_inside(root: Path, name: str) -> bytes:
    """Return the content of a regular file inside a folder; raises OSError, also for a link that leads out of it."""
    if not (root / name).resolve().is_relative_to(root.resolve()):
        raise OSError(errno.EINVAL, "it lies outside the folder", str(root / name))
    with open_regular(root / name) as stream:
        return stream.read()


@contextmanager
def translate_os_errors(path: Path, *, do: str | None = None) -> Iterator[None]:
    """Raise an `OSError` of writing as a `ResourceError` that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ResourceError(f"can't write: {reason}", file=path, do=do or REMEDIES.get(error.errno or 0)) from error


@contextmanager
def atomic_file(path: Path, *, check: Callable[[Path], object] = lambda _path: None) -> Iterator[Path]:
    """Yield a temporary file beside `path`; without an error it is synced and renamed to `path` at the end.

    `check(path)` is called before the work and again before the renaming; it raises an error about what is not to be
    lost, see `check_own`.
    """
    check(path)
    with translate_os_errors(path):
        if path.is_dir():  # reported before the work, not after it
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix(path), suffix=PART)
        os.close(handle)
    temporary = Path(name)
    try:
        with held(temporary):
            yield temporary
        with translate_os_errors(path):
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
        check(path)
        with translate_os_errors(path):
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path, *, replace: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; without an error it is synced and renamed to `path` at the end.

    A `path` that exists and is not empty raises a UsageError, unless `replace(path)` accepts it: it is called before
    the work and again before the exchange, and raises an error about what is not to be lost.
    """
    check = replace or check_new
    path = path if replace is None else Path(os.path.realpath(path))
    check(path)
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix(path), suffix=PART))
    try:
        with held(temporary):
            yield temporary
        with translate_os_errors(path):
            temporary.chmod(0o777 & ~_umask())
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _sync(Path(folder, name))
                _sync(Path(folder))
        check(path)
        with translate_os_errors(path):
            if replace is None:
                _rename_new(temporary, path)
            else:
                take_place(temporary, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def temporary_dir(folder: Path | None = None) -> Iterator[Path]:
    """Yield a directory in a folder, or among the system's temporary files; what killed processes left is removed."""
    place = folder or Path(tempfile.gettempdir())
    with translate_os_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        sweep(place)
        made = Path(tempfile.mkdtemp(dir=place, prefix=prefix(place / "tlkit"), suffix=PART))
    try:
        with held(made):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_new(path: Path) -> None:
    """Raise a UsageError if an output exists; an empty directory is accepted."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise UsageError("it exists already", file=path, do="choose another -o, or remove it first")


def check_own(path: Path, is_own: Callable[[Path], bool]) -> None:
    """Raise a UsageError if a file is there that is not empty and not, by its content, what tlkit would write."""
    try:
        replaceable = not path.exists() or path.is_dir() or not path.stat().st_size or is_own(path)
    except OSError:
        replaceable = False
    if not replaceable:
        what = "tlkit did not write this file, and does not replace it"
        raise UsageError(what, file=path, do="choose another name, or move it away")


def contains(path: Path, mark: bytes) -> bool:
    """Return True if the bytes `mark` are in a regular file."""
    return path.is_file() and mark in path.read_bytes()


def check_writable(path: Path) -> None:
    """Raise a ResourceError, before a long job, if `path` can't be created."""
    parent = next(p for p in path.absolute().parents if p.exists())
    with translate_os_errors(path), tempfile.NamedTemporaryFile(dir=parent, prefix=prefix(path), suffix=PART):
        pass


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename to `path`, which the system refuses where somebody put something there in the meantime."""
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        check_new(path)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Return the umask of the process. It can be read only by setting it, so it is restored at once."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


class NpyWriter:
    """Append rows to an open `.npy` file; `close` writes their number into its header.

    Rows are written front to back rather than through a memory map, which would end the process if the disk is full.
    """

    def __init__(self, stream: IO[bytes], shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.stream, self.shape, self.dtype = stream, shape, dtype
        self.rows = 0
        self._write_header()

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows `(N, *shape)`."""
        import numpy as np

        self.stream.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Complete the header. NumPy reserves space for the first axis to grow, so the header keeps its length."""
        self.stream.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        from numpy import dtype
        from numpy.lib import format as npy

        shape = (self.rows, *self.shape)
        header = {"descr": npy.dtype_to_descr(dtype(self.dtype)), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self.stream, header)
