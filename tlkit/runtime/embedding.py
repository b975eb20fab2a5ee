"""Features of many images into one file: ordered, in bounded memory, whole or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tlkit.errors import DataError, ResourceError, UsageError
from tlkit.graph import metadata
from tlkit.plugin.contract import FEATURES
from tlkit.runtime.model import Model, Row
from tlkit.util.files import NpyWriter, atomic_file, check_writable, translate_os_errors
from tlkit.util.text import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROW_GROUP = 1024  # rows that are held back before they are written


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """The file and what it holds: rows of `width` features. By path, why images were rejected."""

    out: Path
    rows: int
    width: int
    rejected: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """All images, the rejected ones included."""
        return self.rows + len(self.rejected)

    def __fspath__(self) -> str:
        return str(self.out)

    def __str__(self) -> str:
        return f"{self.rows} rows of {self.width} features, {counted(len(self.rejected), 'image')} rejected"

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {**asdict(self), "out": str(self.out)}


class _Writer(Protocol):
    def write(self, rows: Sequence[Row], features: NDArray[np.float32]) -> None: ...


def embed(model: Model, files: Sequence[Path], out: Path, tick: Callable[[int], object]) -> EmbeddingResult:
    """Write the features of `files` to `out`, `.parquet` or `.npy`, in their order.

    Parquet has the columns path, sha256 and features (a fixed-size list of float32). An npy file is `(N, width)`
    float32, with path and sha256 in `out` + `.csv`. What was rejected stands in `out` + `.rejects.csv`.
    """
    open_writer = WRITERS.get(out.suffix.lower())
    if open_writer is None:
        raise UsageError("not a kind of file to write features to", file=out, do="end its name in .parquet or .npy")
    check_writable(out)
    rejected: dict[str, str] = {}
    rows = width = 0
    with translate_os_errors(out), open_writer(out, _provenance(model)) as writer:
        for chunk in model.stream(files, [FEATURES], hashed=True):
            rejected |= {str(row.file): row.reason for row in chunk.rows if row.reason is not None}
            if kept := chunk.kept():
                features = chunk.arrays[FEATURES]
                rows, width = rows + len(kept), features.shape[1]
                writer.write(kept, features)
            tick(len(chunk.rows))
        if not rows:
            first, reason = next(iter(rejected.items()))
            raise DataError(f"none of the {len(files)} images can be used, the first because: {reason}", file=first)
    _write_rejects(out.with_name(out.name + ".rejects.csv"), rejected)
    return EmbeddingResult(out, rows, width, rejected)


@contextmanager
def _parquet(out: Path, provenance: Mapping[str, str]) -> Iterator[_Writer]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ResourceError(
            "writing Parquet needs pyarrow", file=out, do='run: pip install "tlkit[parquet]", or end the name in .npy'
        ) from error

    class Parquet:
        """Opens the file at the first rows, when the width is known, and writes it a row group at a time."""

        def __init__(self, file: Path) -> None:
            self.file = file
            self.opened: Any = None
            self.rows: list[Row] = []
            self.parts: list[NDArray[np.float32]] = []

        def write(self, rows: Sequence[Row], features: NDArray[np.float32]) -> None:
            self.rows += rows
            self.parts.append(features)
            if len(self.rows) >= ROW_GROUP:
                self.flush()

        def flush(self) -> None:
            if not self.rows:
                return
            features = np.concatenate(self.parts)
            flat = pa.Array.from_buffers(pa.float32(), features.size, [None, pa.py_buffer(features)])
            table = pa.table(
                {
                    "path": _strings(_utf8(row.file) for row in self.rows),
                    "sha256": _strings(row.sha256 for row in self.rows),
                    FEATURES: pa.FixedSizeListArray.from_arrays(flat, features.shape[1]),
                }
            )
            if self.opened is None:
                schema = table.schema.with_metadata(provenance)
                # Dictionaries and statistics gain nothing on floats that hardly ever repeat.
                self.opened = parquet.ParquetWriter(self.file, schema, use_dictionary=False, write_statistics=False)
            self.opened.write_table(table.cast(self.opened.schema))
            self.rows, self.parts = [], []

        def close(self) -> None:
            if self.opened is not None:
                self.opened.close()

    with atomic_file(out) as temporary:
        writer = Parquet(temporary)
        try:
            yield writer
            writer.flush()
        finally:
            writer.close()


@contextmanager
def _npy(out: Path, _provenance: Mapping[str, str]) -> Iterator[_Writer]:
    class Npy:
        """Opens the array at the first rows, when their width is known."""

        array: NpyWriter | None = None

        def write(self, rows: Sequence[Row], features: NDArray[np.float32]) -> None:
            self.array = self.array or NpyWriter(data, features.shape[1:], "<f4")
            self.array.write(features)
            names.writerows([str(row.file), row.sha256] for row in rows)

    sidecar = out.with_name(out.name + ".csv")
    with atomic_file(out) as array, _csv(sidecar, ["path", "sha256"]) as names, array.open("wb") as data:
        writer = Npy()
        yield writer
        if writer.array is not None:
            writer.array.close()


WRITERS = {".parquet": _parquet, ".npy": _npy}


@contextmanager
def _csv(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    """A CSV writer whose file takes its place when all is written."""
    with (
        atomic_file(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text,
    ):
        table = csv.writer(text)
        table.writerow(columns)
        yield table


def _strings(values: Iterable[str]) -> Any:
    """A column of Parquet; `pa.array` would import pandas where that is installed, for a quarter of a second."""
    import pyarrow as pa

    builder = pa.lib.StringBuilder()
    builder.append_values(list(values))
    return builder.finish()


def _utf8(file: Path) -> str:
    """A path as Parquet can hold it: bytes that are not UTF-8 are spelled out, as in caf\\xe9.jpg."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def _provenance(model: Model) -> dict[str, str]:
    """What the features are of, for whoever finds the file later."""
    facts = {key: value for key, value in model.session.metadata.items() if key != metadata.LABELS}
    return {**facts, metadata.PREPROCESSING: metadata.recipe(model.preprocessing)}


def _write_rejects(file: Path, rejected: dict[str, str]) -> None:
    if not rejected:
        file.unlink(missing_ok=True)  # of an earlier run: it would speak of other features
        return
    with _csv(file, ["path", "reason"]) as table:
        table.writerows(rejected.items())
