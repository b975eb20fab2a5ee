"""The manifest of a job: every image of its sources, listed once, sorted by key and frozen in a Parquet file.

Listing, sorting and reading take bounded memory: records are sorted in runs on disk, which are merged.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tlkit.data.decoding import HEAD, format_of
from tlkit.data.scan import is_image_name
from tlkit.errors import ArtifactError, DataError
from tlkit.plugin.contract import Reader, Record, Source, Tick
from tlkit.util.files import translate_os_errors
from tlkit.util.parquet import binaries, numbers, strings
from tlkit.util.prefetch import chunks
from tlkit.util.text import utf8

RUN = 8192  # records that are sorted in memory at once
FILES = 32  # of sorted records, which are merged into a larger one
STORED = 1024  # rows of each of them that are decompressed at once while they are merged
BATCH = 64  # rows of a file that are Python objects at once
ROW_GROUP = 8192  # rows of the manifest that are read at once, at the least


class Row(NamedTuple):
    """One image of a manifest; the fields are those of `Record`, with the number of its source. Rows sort by key."""

    key: str
    source: int
    locator: str
    size: int
    version: str
    problem: str  # reason why it can't be read, or empty


class Opened(NamedTuple):
    """A place of a source, with its reader. Where there are several, keys get its name as it was given before them."""

    source: Source
    place: str
    reader: Reader
    given: str = ""

    def outer(self, key: str) -> str:
        """Return the key in the manifest of a record's key; that of a single file is its own name."""
        if not self.given or os.path.basename(self.given) == key:
            return self.given or key
        return f"{self.given.rstrip('/')}/{key}"

    def read(self, row: Row) -> bytes:
        """Return the bytes of a row's image, as `Reader.read` does."""
        inner = os.path.basename(self.given) if row.key == self.given else row.key.removeprefix(self.outer(""))
        return self.reader.read(Record(inner, row.locator, row.size, row.version))


def list_images(places: Sequence[Opened], skipped: Counter[str]) -> Iterator[Row]:
    """Yield a row for each image of some places; the others are counted in `skipped`, by the ends of their names.

    A key is text, so that every reader of the result has the same one: a name that is none is a problem.
    """
    for number, opened in enumerate(places):
        for record in opened.source.records(opened.place):
            key = utf8(record.key)
            if opened.source.only_images or _is_image(record, opened.reader):
                problem = record.problem or ("" if key == record.key else "its name is not UTF-8")
                yield Row(opened.outer(key), number, record.locator, record.size, record.version, problem)
            else:
                skipped[os.path.splitext(key)[1].lower() or "without a suffix"] += 1


def _is_image(record: Record, reader: Reader) -> bool:
    """Return whether a record is an image: by the end of its key, or by its first bytes if that says nothing."""
    known = is_image_name(record.key)
    if known is not None or record.problem is not None:
        return bool(known)
    try:
        return format_of(reader.read(record)[:HEAD]) is not None
    except DataError:
        return False


def write_manifest(rows: Iterable[Row], out: Path, tick: Tick) -> int:
    """Write rows in any order to a file, sorted; return their number. Of rows with the same key the first is kept.

    The others stay in the manifest, with that as the problem. Beside `out` are files with what does not fit in memory.
    `tick` is called with the number of rows listed.
    """
    import pyarrow as pa

    small, large, last, number = list[Path](), list[Path](), list[Row](), count()

    def store(rows: Iterable[Row]) -> Path:
        file = out.with_name(f"{next(number)}.parquet")
        _write(rows, file, STORED)
        return file

    for run in chunks(rows, RUN):
        if last:
            small.append(store(last))
        if len(small) == FILES:
            large.append(store(heapq.merge(*map(_read, small))))
            for file in small:
                file.unlink()
            small.clear()
        last = sorted(run)
        tick(len(run))
    written = _write(_unique(heapq.merge(*map(_read, [*large, *small]), last)), out, ROW_GROUP)
    pa.default_memory_pool().release_unused()
    return written


def _unique(rows: Iterable[Row]) -> Iterator[Row]:
    before = None
    for row in rows:
        yield row._replace(problem=row.problem or "another image has the same key") if row.key == before else row
        before = row.key


def _write(rows: Iterable[Row], file: Path, group_size: int) -> int:
    from pyarrow import parquet

    written = 0
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["problem"], "write_statistics": False}
    schema = _table([]).schema
    with translate_os_errors(file), parquet.ParquetWriter(file, schema, **options) as writer:
        for group in chunks(rows, group_size):
            writer.write_table(_table(group))
            written += len(group)
    return written


def _table(rows: Sequence[Row]) -> Any:
    import pyarrow as pa

    keys, sources, locators, sizes, versions, problems = zip(*rows, strict=True) if rows else ((),) * 6
    columns = {
        "key": strings(keys),
        "source": numbers(np.array(sources, np.int32)),
        "locator": binaries([os.fsencode(locator) for locator in locators]),
        "size": numbers(np.array(sizes, np.int64)),
        "version": strings(versions),
        "problem": strings(problems),
    }
    return pa.table(columns)


def _read(file: Path, first: int = 0, last: int | None = None) -> Iterator[Row]:
    """Yield the rows of a manifest, or those from `first` to `last`, the latter excluded."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(file, memory_map=True) as opened:
            counts = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            ends = list(np.cumsum(counts))
            last = int(ends[-1]) if last is None else last
            for group, end in enumerate(ends):
                begin = int(end) - counts[group]
                if begin < last and end > first:
                    for batch in opened.iter_batches(BATCH, row_groups=[group], use_threads=False):
                        low, high = max(0, first - begin), min(len(batch), last - begin)
                        if low < high:
                            yield from _rows(batch.slice(low, high - low))
                        begin += len(batch)
    except (OSError, ArrowException) as error:
        raise ArtifactError(f"the manifest can't be read: {error}", file=file, do="start the job again") from error


def _rows(batch: Any) -> Iterator[Row]:
    columns = [column.to_pylist() for column in batch.columns]
    columns[2] = [os.fsdecode(locator) for locator in columns[2]]
    return map(Row, *columns)


def read_rows(file: Path, first: int, last: int) -> list[Row]:
    """Return the rows of a manifest from `first` to `last`, the latter excluded. Raises ArtifactError."""
    found = list(_read(file, first, last))
    if len(found) != last - first:
        raise ArtifactError(f"it has {len(found)} rows where {last - first} are expected", file=file)
    return found
