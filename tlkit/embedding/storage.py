"""The folder of a job, on this machine or at an address: whole files are put into it, read and listed.

A file is put atomically: on a disk by renaming, in an object storage by its own promise.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from tlkit.errors import ResourceError
from tlkit.util.files import (
    atomic_file,
    cache_dir,
    is_address,
    read_regular,
    sha256,
    temporary_dir,
    translate_os_errors,
)
from tlkit.util.remote import file_system, reaching

PATIENCE = 3  # copies of a manifest that are fetched until one has its hash


class Folder(ABC):
    """A folder, whose files are named relative to it. What can't be reached or written is a ResourceError."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __str__(self) -> str:
        return self.place

    def at(self, name: str) -> str:
        """Return the place of a file."""
        return f"{self.place.rstrip('/')}/{name}"

    def write_json(self, name: str, facts: Mapping[str, Any]) -> None:
        """Put facts as JSON."""
        with self.writing(name) as file:
            file.write_text(json.dumps(facts, indent=1), "utf-8")

    @abstractmethod
    def scratch(self, inside: str) -> AbstractContextManager[Path]:
        """Yield a folder of this machine, for what becomes a file inside a folder; it is removed at the end."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yield a file of this machine, which is put at the end."""

    @abstractmethod
    def reading(self, name: str) -> AbstractContextManager[Path]:
        """Yield a file of this machine with the content of a file. Raises OSError."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> None:
        """Put a file unless there is one; of several that do so at once, all find the same one afterwards."""

    @abstractmethod
    def kept(self, name: str, digest: str) -> Path:
        """Return a file of this machine with the content of a file of this SHA-256, if it has that. Raises OSError."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises OSError."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def names(self, inside: str = "") -> set[str]:
        """Return the names of what is in this folder, or in one inside it, without theirs."""


class LocalFolder(Folder):
    """A folder of this machine, or one that several machines mount."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.root = root

    def scratch(self, inside: str) -> AbstractContextManager[Path]:
        return temporary_dir(self.root / inside)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with translate_os_errors(self.root / name), atomic_file(self.root / name) as temporary:
            yield temporary

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        yield self.root / name

    def create(self, name: str, content: bytes) -> None:
        with self.writing(name) as file:  # who makes a job holds its lock
            file.write_bytes(content)

    def kept(self, name: str, digest: str) -> Path:
        return self.root / name

    def read(self, name: str) -> bytes:
        return read_regular(self.at(name))  # a job has many records, and paths cost more than reading

    def remove(self, name: str) -> None:
        with suppress(OSError):
            (self.root / name).unlink()

    def names(self, inside: str = "") -> set[str]:
        try:
            return set(os.listdir(self.root / inside))
        except (FileNotFoundError, NotADirectoryError):
            return set()


class RemoteFolder(Folder):
    """A folder at an address."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self._system, path = file_system(place)
        self._path = path.rstrip("/")

    def scratch(self, inside: str) -> AbstractContextManager[Path]:
        return temporary_dir()

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with temporary_dir() as folder:
            with translate_os_errors(folder):
                yield folder / "file"
            with reaching(self.at(name)):
                self._system.put_file(str(folder / "file"), f"{self._path}/{name}")

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        with temporary_dir() as folder:
            self._fetch(name, folder / "file")
            yield folder / "file"

    def create(self, name: str, content: bytes) -> None:
        folder, _, base = name.rpartition("/")
        try:
            with reaching(self.at(name)):
                self._system.pipe_file(f"{self._path}/{name}", content, mode="create")
        except (FileExistsError, ResourceError):  # storages differ in what they say if it is there
            if base not in self.names(folder):
                raise

    def kept(self, name: str, digest: str) -> Path:
        file = cache_dir("manifests") / f"{digest}.parquet"
        for _ in range(PATIENCE):
            if file.is_file() and sha256(file) == digest:
                break
            with atomic_file(file) as temporary:
                self._fetch(name, temporary)
        return file

    def read(self, name: str) -> bytes:
        with reaching(self.at(name)):
            content: bytes = self._system.cat_file(f"{self._path}/{name}")
        return content

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), reaching(self.at(name)):
            self._system.rm_file(f"{self._path}/{name}")

    def names(self, inside: str = "") -> set[str]:
        folder = f"{self._path}/{inside}".rstrip("/")
        try:
            with reaching(self.at(inside)):
                found = self._system.ls(folder, detail=False)
        except FileNotFoundError:
            return set()
        return {name.rstrip("/").rpartition("/")[2] for name in found if name.rstrip("/") != folder}

    def _fetch(self, name: str, file: Path) -> None:
        with reaching(self.at(name)):
            self._system.get_file(f"{self._path}/{name}", str(file))


def folder_at(place: str | os.PathLike[str]) -> Folder:
    """Return the folder at a place."""
    text = os.fspath(place)
    return RemoteFolder(text) if is_address(text) else LocalFolder(Path(text))
