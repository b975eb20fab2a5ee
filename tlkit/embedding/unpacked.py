"""Labeled images of any source as a folder of class folders, in the cache: what trains reads them again and again.

The folder follows from the listing, and from the options and the code of the source that reads it, so that a source is
unpacked once until one of them changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tlkit.data.decoding import HEAD, SUFFIXES, format_of
from tlkit.embedding.manifest import Opened
from tlkit.errors import DataError
from tlkit.plugin.contract import Record
from tlkit.plugin.sources import identity
from tlkit.util.files import atomic_dir, atomic_file, cache_dir, check_writable
from tlkit.util.text import counted, listed, utf8

_LETTERS = re.compile(r'[\x00-\x1f<>:"|?*\\/]')


class _File(NamedTuple):
    opened: Opened
    record: Record
    name: str  # relative to the folder, POSIX

    def target(self, folder: Path, content: bytes) -> Path:
        """Return the file that gets the content of an image, an empty one if it can't be read."""
        file = folder / self.name
        if self.opened.source.only_images and file.suffix[1:].lower() not in SUFFIXES:
            return file.with_name(f"{file.name}.{(format_of(content[:HEAD]) or 'jpeg').lower()}")
        return file

    def read(self, problems: list[str]) -> bytes:
        """Return the content of an image; none, with the reason among the problems, if it can't be read."""
        try:
            if self.record.problem is not None:
                raise DataError(self.record.problem)
            return self.opened.reader.read(self.record)
        except DataError as error:
            problems.append(f"{self.opened.outer(self.record.key)} ({error.what})")
            return b""


def unpacked(places: Sequence[Opened], warn: Callable[[str], object]) -> Path:
    """Return a folder with the images of some places: in class folders by their labels, or else as their keys say.

    An image that can't be read is an empty file, and a warning names it. Raises DataError for a key that would lead out
    of the folder.
    """
    files = list(_files(places))
    if not files:
        raise DataError("there is no image", file=", ".join(opened.place for opened in places))
    digest = hashlib.sha256(repr([(opened.place, identity(opened.source)) for opened in places]).encode())
    for each in files:
        facts = (each.name, each.record.locator, each.record.size, each.record.version, each.opened.place)
        digest.update(repr(facts).encode("utf-8", "backslashreplace"))
    folder = cache_dir("sources") / digest.hexdigest()[:32]
    problems = list[str]()
    if folder.is_dir():
        for each in files:
            _renew(each, folder, problems)
    else:
        check_writable(folder)
        with atomic_dir(folder) as temporary:
            for each in files:
                content = each.read(problems)
                file = each.target(temporary, content)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
    if problems:
        warn(f"{counted(len(problems), 'image')} can't be read: {listed(problems)}")
    return folder


def _renew(each: _File, folder: Path, problems: list[str]) -> None:
    """Read an image again that could not be read before, or that has no version to tell if it is the same."""
    empty = each.target(folder, b"")
    if each.record.version and not (empty.is_file() and not empty.stat().st_size):
        return
    content = each.read(problems)
    file = each.target(folder, content)
    if not content or (file.is_file() and file.read_bytes() == content):
        return
    with atomic_file(file) as temporary:
        temporary.write_bytes(content)
    if file != empty:
        empty.unlink(missing_ok=True)


def _files(places: Sequence[Opened]) -> Iterator[_File]:
    """Yield the images of places, with the names that they get."""
    for opened in places:
        for record in opened.source.records(opened.place):
            name = utf8(opened.outer(record.key))
            if record.label is not None:
                folders = [record.split] if record.split else []
                flat = _LETTERS.sub("-", name)
                name = "/".join([*folders, _LETTERS.sub("-", record.label) or "-", flat])
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise DataError("its name leads out of the folder", file=f"{opened.place}: {record.key}")
            yield _File(opened, record, name)
