"""Files of this machine and, through fsspec where it is installed, of any storage that has an address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from tlkit.plugin.support import DataError, file_system, is_address, open_regular, reaching

CHANGED = "has changed since it was listed"


class FileState(NamedTuple):
    """Size of a file in bytes, and what changes with its content."""

    size: int
    version: str


def state(place: str) -> FileState:
    """Return the state of a file. Raises DataError if there is none."""
    try:
        if not is_address(place):
            status = os.stat(place)
            return FileState(status.st_size, f"{status.st_mtime_ns}")
        system, path = file_system(place)
        with reaching(place):
            return state_of(system.info(path))
    except FileNotFoundError as error:
        raise DataError("no such file", file=place) from error
    except (OSError, ValueError) as error:  # the latter for a name with a zero byte
        raise DataError(f"can't be read: {getattr(error, 'strerror', None) or error}", file=place) from error


def state_of(info: dict[str, Any]) -> FileState:
    """Return the state of a file from what fsspec says of it."""
    known = (info.get(key) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified"))
    version = next((str(each) for each in known if each), "")
    return FileState(int(info.get("size") or 0), version.strip('"'))


@contextmanager
def opened(place: str) -> Iterator[IO[bytes]]:
    """Open a file to read. Raises DataError."""
    try:
        if is_address(place):
            system, path = file_system(place)
            with reaching(place), system.open(path, "rb") as stream:
                yield stream
        else:
            with open_regular(place) as stream:
                yield stream
    except FileNotFoundError as error:
        raise DataError("no such file", file=place) from error


def read(place: str, start: int, size: int, version: str) -> bytes:
    """Return a stretch of a file, or DataError if it is not the file of that version any more."""
    try:
        if is_address(place):
            if state(place).version != version:
                raise DataError(CHANGED)
            system, path = file_system(place)
            with reaching(place):
                found: bytes = system.cat_file(path, start=start, end=start + size)
            return found
        with open_regular(place) as stream:
            if str(os.fstat(stream.fileno()).st_mtime_ns) != version:
                raise DataError(CHANGED)
            return os.pread(stream.fileno(), size, start)
    except FileNotFoundError as error:
        raise DataError("no such file", file=place) from error


def read_file(place: str, version: str) -> bytes:
    """Return the content of a file, or DataError if it is gone or not of that version any more."""
    try:
        if is_address(place):
            if version and state(place).version != version:
                raise DataError(CHANGED)
            system, path = file_system(place)
            with reaching(place):
                found: bytes = system.cat_file(path)
            return found
        with open_regular(place) as stream:
            if str(os.fstat(stream.fileno()).st_mtime_ns) != version:
                raise DataError(CHANGED)
            return stream.read()
    except FileNotFoundError as error:
        raise DataError("no such file") from error
    except OSError as error:
        raise DataError(f"can't be read: {(error.strerror or str(error)).lower()}") from error


def ending(place: str) -> str:
    """Return the end of a name, as in ".tar"."""
    return os.path.splitext(place)[1].lower()


def is_image_name(place: str) -> bool:
    """Return whether a name ends as that of an image which is decoded."""
    from tlkit.plugin.support import IMAGE_SUFFIXES

    return ending(place)[1:] in IMAGE_SUFFIXES
