"""A column of images in Parquet: bytes, or `struct<bytes, path>` as Hugging Face's datasets have it.

Rows are read in slices and never decoded here, so that one bad picture is one reject. The key is the number of the row.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlkit.plugin.contract import Reader, Record, Source, option
from tlkit.plugin.support import DataError
from tlkit_standard.sources import _reach

_SLICE, _KEPT = 64, 8  # rows that are read at once, and slices that are kept for threads that are behind


@dataclass(frozen=True)
class Parquet(Source):
    name = "image-column"
    only_images = True
    column: str = option("image", "column with the images")
    label_column: str | None = option(None, "column with the labels; none: without labels")

    def accepts(self, place: str) -> bool:
        if _reach.ending(place) != ".parquet":
            return False
        from pyarrow import ArrowException, parquet, types

        try:
            with _reach.opened(place) as stream:
                schema = parquet.read_schema(stream)
        except (DataError, OSError, ArrowException):
            return False
        found = schema.field(self.column).type if self.column in schema.names else None
        return found is not None and (types.is_struct(found) or types.is_binary(found) or types.is_large_binary(found))

    def records(self, place: str) -> Iterator[Record]:
        from pyarrow import ArrowException, parquet

        version = _reach.state(place).version
        try:
            with _reach.opened(place) as stream, parquet.ParquetFile(stream) as file:
                names = _class_names(file.schema_arrow, self.label_column)
                row = 0
                for group in range(file.num_row_groups):
                    labels = self._labels(file, group, names)
                    own = version if self._holds(file, group) else ""
                    for number in range(file.metadata.row_group(group).num_rows):
                        label = None if labels is None else next(labels)
                        yield Record(f"{row:09}", f"{group}:{number}", -1, own, label)
                        row += 1
        except (OSError, ArrowException, KeyError) as error:
            raise DataError(f"its rows can't be listed: {error}", file=place) from error

    def _labels(self, file: Any, group: int, names: list[str] | None) -> Iterator[str] | None:
        if self.label_column is None:
            return None
        values = file.read_row_group(group, columns=[self.label_column]).column(0).to_pylist()
        return (str(value) if names is None or not isinstance(value, int) else names[value] for value in values)

    def _holds(self, file: Any, group: int) -> bool:
        """Return whether a row group holds all its images; if not, a path may name a file that changes by itself."""
        parts = file.metadata.row_group(group)
        columns = {part.path_in_schema: part for part in map(parts.column, range(parts.num_columns))}
        content = columns.get(f"{self.column}.bytes")
        return content is None or (content.statistics is not None and content.statistics.null_count == 0)

    def open(self, place: str) -> Reader:
        return ParquetReader(place, self.column)

    def example(self, folder: Path, files: Mapping[str, bytes]) -> str:
        import pyarrow as pa
        from pyarrow import parquet

        folder.mkdir(parents=True)
        images = [{"bytes": content, "path": name} for name, content in files.items()]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        table = pa.table({self.column: pa.array(images, kind)})
        parquet.write_table(table, folder / "images.parquet", row_group_size=3)
        return str(folder / "images.parquet")


class ParquetReader(Reader):
    """Reads forward in slices of a row group, and keeps the last ones: jobs read rows in order, in several threads."""

    def __init__(self, place: str, column: str) -> None:
        self.place, self.column = place, column
        self._lock = threading.Lock()
        self._slices: OrderedDict[tuple[int, int], list[Any]] = OrderedDict()
        self._ahead: tuple[int, int, Iterator[Any]] | None = None  # group and number of the next slice

    def read(self, record: Record) -> bytes:
        group, row = map(int, record.locator.split(":"))
        with self._lock:
            if record.version and _reach.state(self.place).version != record.version:
                raise DataError(_reach.CHANGED)
            found = self._slice(group, row // _SLICE)[row % _SLICE]
        content = found.get("bytes") if isinstance(found, dict) else found
        if content is None and isinstance(found, dict) and found.get("path"):
            file = str(Path(self.place).parent / found["path"])
            return _reach.read_file(file, _reach.state(file).version)
        if content is None:
            raise DataError("its row has no image")
        return bytes(content)

    def _slice(self, group: int, number: int) -> list[Any]:
        from pyarrow import ArrowException

        try:
            while (group, number) not in self._slices:
                if self._ahead is None or self._ahead[0] != group or self._ahead[1] > number:
                    self._ahead = (group, 0, self._batches(group))
                _, at, batches = self._ahead
                self._slices[group, at] = next(batches).column(0).to_pylist()
                self._ahead = (group, at + 1, batches)
                while len(self._slices) > _KEPT:
                    self._slices.popitem(last=False)
        except StopIteration as error:
            raise DataError("its row is gone") from error
        except ArrowException as error:
            raise DataError(f"its rows can't be read: {error}") from error
        return self._slices[group, number]

    def _batches(self, group: int) -> Iterator[Any]:
        from pyarrow import parquet

        with _reach.opened(self.place) as stream, parquet.ParquetFile(stream) as file:
            yield from file.iter_batches(_SLICE, row_groups=[group], columns=[self.column])


def _class_names(schema: Any, column: str | None) -> list[str] | None:
    """Return the names of classes that are stored as numbers, from the metadata of Hugging Face's datasets."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, ValueError, TypeError):
        return None
