"""A tar archive, read without unpacking it; one of WebDataset has the label of `0001.jpg` in `0001.cls`.

A sample of WebDataset without an image, and the last file of an archive that is cut, are rejected by name. A compressed
archive is refused: none of its files can be read without all before it.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from tlkit.plugin.contract import Reader, Record, Source, option
from tlkit.plugin.support import DataError
from tlkit_standard.sources import _reach

_LONGEST = 1000  # bytes of a label


@dataclass(frozen=True)
class Tar(Source):
    name = "tar-archive"
    only_images = True
    label: str = option("cls", "end of the name of the files with labels")

    def accepts(self, place: str) -> bool:
        return place.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz"))

    def records(self, place: str) -> Iterator[Record]:
        if _reach.ending(place) != ".tar":
            raise DataError("a compressed archive can't be read in parts", file=place, do="decompress it to .tar")
        size, version = _reach.state(place)
        with _reach.opened(place) as stream:
            sample, kept, others = "", list[Record](), 0
            for record, label in self._members(stream, place, size):
                base = _base(record.key)
                if base != sample:
                    yield from _sample(sample, kept, others)
                    sample, kept, others = base, [], 0
                if label is not None:
                    kept = [replace(each, label=label) for each in kept]
                    others += 1
                elif _reach.is_image_name(record.key) or record.problem:
                    kept.append(replace(record, version=version))
                else:
                    others += 1
            yield from _sample(sample, kept, others)

    def _members(self, stream: IO[bytes], place: str, size: int) -> Iterator[tuple[Record, str | None]]:
        """Yield each file of an archive, and the label if it is one."""
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    vars(archive)["members"].clear()  # it keeps all that it has seen
                    cut = member.offset_data + member.size > size
                    problem = "its archive is cut" if cut else None
                    label = None
                    if not member.isreg():
                        continue
                    if member.name.endswith(f".{self.label}") and not cut:
                        read = archive.extractfile(member)
                        label = read.read(_LONGEST).decode("utf-8", "replace").strip() if read else None
                    key = member.name.removeprefix("./")
                    yield Record(key, f"{member.offset_data:015}", member.size, problem=problem), label
                    if cut:
                        return
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"not a tar archive that can be read: {error}", file=place) from error

    def open(self, place: str) -> Reader:
        return TarReader(place)

    def example(self, folder: Path, files: Mapping[str, bytes]) -> str:
        folder.mkdir(parents=True)
        with tarfile.open(folder / "images.tar", "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return str(folder / "images.tar")


class TarReader(Reader):
    def __init__(self, place: str) -> None:
        self.place = place

    def read(self, record: Record) -> bytes:
        return _reach.read(self.place, int(record.locator), record.size, record.version)


def _base(key: str) -> str:
    """Return the name that the files of a sample share: all up to the first dot of the last part."""
    folder, name = os.path.split(key)
    return os.path.join(folder, name.partition(".")[0])


def _sample(name: str, images: list[Record], others: int) -> Iterator[Record]:
    if images:
        yield from images
    elif others and name:
        yield Record(name, problem="its sample has no image")
