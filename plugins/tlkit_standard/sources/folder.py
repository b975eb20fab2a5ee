"""A folder of image files, searched recursively, or one image file.

Links to folders are followed once; hidden files and those of operating systems are left out. Where fsspec is installed,
it may be the address of a folder, such as s3://bucket/photos. A file is known to be the one that was listed by its time
of modification, or by its entity tag, which costs a request for each image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tlkit.plugin.contract import Reader, Record, Source
from tlkit.plugin.support import DataError, file_system, is_address, reaching, walk
from tlkit_standard.sources import _reach


@dataclass(frozen=True)
class Folder(Source):
    name = "image-folder"
    in_place = True

    def accepts(self, place: str) -> bool:
        if is_address(place):
            return _reach.is_image_name(place) or _reach.ending(place) == "" or place.endswith("/")
        return os.path.isdir(place) or _reach.is_image_name(place)

    def records(self, place: str) -> Iterator[Record]:
        if is_address(place):
            return _remote(place)
        return _local(Path(place))

    def open(self, place: str) -> Reader:
        return FolderReader(place)

    def example(self, folder: Path, files: Mapping[str, bytes]) -> str:
        for name, content in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return str(folder)


class FolderReader(Reader):
    def __init__(self, place: str) -> None:
        single = _reach.is_image_name(place) and not os.path.isdir(place)
        self.root = os.path.dirname(place) if single else place.rstrip("/")

    def read(self, record: Record) -> bytes:
        name = f"{self.root}/{record.key}" if self.root else record.key
        return _reach.read_file(name, record.version)


def _local(root: Path) -> Iterator[Record]:
    try:
        if not root.is_dir():
            yield _record(root, root.name)
            return
        for path, kind in walk(root):
            if kind == "file":
                yield _record(root / path, path)
            elif kind != "folder":
                yield Record(path, problem=kind)
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", file=error.filename or root) from error


def _remote(place: str) -> Iterator[Record]:
    system, root = file_system(place)
    root = root.rstrip("/")
    try:
        with reaching(place):
            if system.isfile(root):
                yield Record(os.path.basename(root), "", *_reach.state_of(system.info(root)))
                return
            for folder, _, files in system.walk(root, detail=True, on_error="raise"):
                inside = folder[len(root) :].strip("/")
                for name, info in files.items():
                    if name and not name.startswith("."):
                        yield Record(f"{inside}/{name}".lstrip("/"), "", *_reach.state_of(info))
    except FileNotFoundError as error:
        raise DataError("no such file or folder", file=place) from error


def _record(file: Path, name: str) -> Record:
    try:
        status = file.stat()
    except OSError as error:  # it went while the folder was read
        return Record(name, problem=f"can't be read: {(error.strerror or '').lower()}")
    return Record(name, "", status.st_size, str(status.st_mtime_ns))
