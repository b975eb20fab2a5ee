"""A table of paths or addresses, CSV or Parquet: one image per row, relative to the table's folder.

The columns label and split are taken where they are there.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tlkit.plugin.contract import Reader, Record, Source, option
from tlkit.plugin.support import DataError, is_address
from tlkit_standard.sources import _reach


@dataclass(frozen=True)
class Table(Source):
    name = "image-table"
    in_place = True
    only_images = True
    column: str = option("path", "column with the paths or addresses")
    label_column: str = option("label", "column with the labels, if there is one")

    def accepts(self, place: str) -> bool:
        suffix = _reach.ending(place)
        if suffix != ".parquet":
            return suffix == ".csv"
        from pyarrow import ArrowException, parquet, types

        try:
            with _reach.opened(place) as stream:
                schema = parquet.read_schema(stream)
        except (DataError, OSError, ArrowException):
            return False
        return self.column in schema.names and types.is_string(schema.field(self.column).type)

    def records(self, place: str) -> Iterator[Record]:
        folder = os.path.dirname(place)
        for number, row in enumerate(self._rows(place), 1):
            name = row.get(self.column)
            if not name:
                raise DataError(f"row {number} has no {self.column}", file=place)
            facts = (row.get(self.label_column), row.get("split"))
            try:
                size, version = _reach.state(_full(folder, name))
                yield Record(name, "", size, version, *facts)
            except DataError as error:
                yield Record(name, "", -1, "", *facts, problem=error.what)

    def _rows(self, place: str) -> Iterator[Mapping[str, str]]:
        with _reach.opened(place) as stream:
            if _reach.ending(place) == ".csv":
                try:
                    with io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text:
                        yield from csv.DictReader(text)
                except (ValueError, csv.Error) as error:
                    raise DataError(f"not a CSV table in UTF-8: {error}", file=place) from error
                return
            from pyarrow import parquet

            with parquet.ParquetFile(stream) as file:
                wanted = [each for each in (self.column, self.label_column, "split") if each in file.schema_arrow.names]
                for batch in file.iter_batches(columns=wanted):
                    yield from batch.to_pylist()

    def open(self, place: str) -> Reader:
        return TableReader(place)

    def example(self, folder: Path, files: Mapping[str, bytes]) -> str:
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        with (folder / "images.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["path"], *([name] for name in files)])
        return str(folder / "images.csv")


class TableReader(Reader):
    def __init__(self, place: str) -> None:
        self.folder = os.path.dirname(place)

    def read(self, record: Record) -> bytes:
        return _reach.read_file(_full(self.folder, record.key), record.version)


def _full(folder: str, name: str) -> str:
    return name if is_address(name) or os.path.isabs(name) or not folder else f"{folder}/{name}"
