"""A zip archive, read without unpacking it: files that are stored as they are or deflated, each with its checksum."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tlkit.plugin.contract import Reader, Record, Source
from tlkit.plugin.support import DataError
from tlkit_standard.sources import _reach

_HEADER, _ENCRYPTED = 30, 0x1  # bytes of a local header before its name, and the flag of an encrypted file


@dataclass(frozen=True)
class Zip(Source):
    name = "zip-archive"

    def accepts(self, place: str) -> bool:
        return _reach.ending(place) == ".zip"

    def records(self, place: str) -> Iterator[Record]:
        version = _reach.state(place).version
        try:
            with _reach.opened(place) as stream, zipfile.ZipFile(stream) as archive:
                for each in archive.infolist():
                    if each.is_dir():
                        continue
                    problem = None
                    if each.flag_bits & _ENCRYPTED:
                        problem = "it is encrypted"
                    elif each.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                        problem = "it is compressed in a way that is not read"
                    numbers = (each.header_offset, each.compress_size, each.compress_type, each.CRC)
                    locator = ":".join(map(str, numbers))
                    yield Record(each.filename, locator, each.file_size, version, problem=problem)
        except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
            raise DataError(f"not a zip archive that can be read: {error}", file=place) from error

    def open(self, place: str) -> Reader:
        return ZipReader(place)

    def example(self, folder: Path, files: Mapping[str, bytes]) -> str:
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return str(folder / "images.zip")


class ZipReader(Reader):
    def __init__(self, place: str) -> None:
        self.place = place

    def read(self, record: Record) -> bytes:
        offset, size, method, checksum = map(int, record.locator.split(":"))
        header = _reach.read(self.place, offset, _HEADER, record.version)
        begin = _HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        content = _reach.read(self.place, offset + begin, size, record.version)
        if method == zipfile.ZIP_DEFLATED:
            try:
                inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                content = inflate.decompress(content, record.size + 1)  # a bomb gives no more than it declares
            except zlib.error as error:
                raise DataError(f"damaged: {error}") from error
        if len(content) != record.size or zlib.crc32(content) != checksum:
            raise DataError("damaged: its checksum is wrong")
        return content
