"""Labeled images of any source as a folder of class folders, in the cache: what trains reads them again and again.

The folder follows from the listing, so that a source is unpacked once until it changes.
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
from tlkit.util.files import atomic_dir, cache_dir, check_writable
from tlkit.util.text import counted, listed

_LETTERS = re.compile(r'[\x00-\x1f<>:"|?*\\/]')


class _File(NamedTuple):
    opened: Opened
    record: Record
    name: str  # relative to the folder, POSIX


def unpacked(places: Sequence[Opened], warn: Callable[[str], object]) -> Path:
    """Return a folder with the images of some places: in class folders by their labels, or else as their keys say.

    An image that can't be read is an empty file, and a warning names it. Raises DataError for a key that would lead out
    of the folder.
    """
    files = list(_files(places))
    if not files:
        raise DataError("there is no image", file=", ".join(opened.place for opened in places))
    digest = hashlib.sha256()
    for each in files:
        facts = (each.name, each.record.locator, each.record.size, each.record.version, each.opened.place)
        digest.update(repr(facts).encode("utf-8", "backslashreplace"))
    folder = cache_dir("sources") / digest.hexdigest()[:32]
    if folder.is_dir():
        return folder
    check_writable(folder)
    problems = []
    with atomic_dir(folder) as temporary:
        for each in files:
            content = b""  # an empty file is counted among the unreadable images
            try:
                if each.record.problem is not None:
                    raise DataError(each.record.problem)
                content = each.opened.reader.read(each.record)
            except DataError as error:
                problems.append(f"{each.opened.outer(each.record.key)} ({error.what})")
            file = temporary / each.name
            if each.opened.source.only_images and file.suffix[1:].lower() not in SUFFIXES:
                file = file.with_name(f"{file.name}.{(format_of(content[:HEAD]) or 'jpeg').lower()}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if problems:
            warn(f"{counted(len(problems), 'image')} can't be read: {listed(problems)}")
    return folder


def _files(places: Sequence[Opened]) -> Iterator[_File]:
    """Yield the images of places, with the names that they get."""
    for opened in places:
        for record in opened.source.records(opened.place):
            name = opened.outer(record.key)
            if record.label is not None:
                folders = [record.split] if record.split else []
                flat = _LETTERS.sub("-", name)
                name = "/".join([*folders, _LETTERS.sub("-", record.label) or "-", flat])
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise DataError("its name leads out of the folder", file=f"{opened.place}: {record.key}")
            yield _File(opened, record, name)
