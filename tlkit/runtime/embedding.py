"""Write the features of many images to one file: in order, in bounded memory, atomically."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tlkit.errors import DataError, ResourceError, UsageError
from tlkit.graph import metadata
from tlkit.plugin.contract import FEATURES
from tlkit.runtime.model import Model
from tlkit.runtime.pipeline import ImageRecord
from tlkit.util.files import NpyWriter, atomic_file, check_writable, translate_os_errors
from tlkit.util.text import counted

ROW_GROUP = 1024  # rows that are collected before they are written


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """The file, the number and width of its rows, and the images that were rejected: path to reason."""

    out: Path
    rows: int
    width: int
    rejected: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Number of all images, including the rejected ones."""
        return self.rows + len(self.rejected)

    def __fspath__(self) -> str:
        return str(self.out)

    def __repr__(self) -> str:
        return f"{self.rows} rows of {self.width} features, {counted(len(self.rejected), 'image')} rejected"

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {**asdict(self), "out": str(self.out)}


class _Writer(Protocol):
    def write(self, images: Sequence[ImageRecord], features: NDArray[np.float32]) -> None: ...


def embed(
    model: Model, files: Sequence[Path], out: Path, tick: Callable[[int], object], *, row_group: int = ROW_GROUP
) -> EmbeddingResult:
    """Write the features of `files` to `out`, `.parquet` or `.npy`, in their order.

    Parquet has the columns path, sha256 and features (a fixed-size list of float32). A npy file is `(N, width)`
    float32, with path and sha256 in `out` + `.csv`. Unreadable images are in `out` + `.rejects.csv`. Parquet is written
    in groups of `row_group` rows.
    """
    open_writer = WRITERS.get(out.suffix.lower())
    if open_writer is None:
        raise UsageError("not a format to write features in", file=out, do="end its name in .parquet or .npy")
    check_writable(out)
    rejected: dict[str, str] = {}
    rows = width = 0
    with translate_os_errors(out), open_writer(out, _provenance(model), row_group) as writer:
        for batch in model.stream(files, [FEATURES], hashed=True):
            rejected |= {image.name: image.reason for image in batch.images if image.reason is not None}
            if readable := batch.readable():
                features = batch.arrays[FEATURES]
                rows, width = rows + len(readable), features.shape[1]
                writer.write(readable, features)
            tick(len(batch.images))
        if not rows:
            first, reason = next(iter(rejected.items()))
            raise DataError(f"none of the {len(files)} images is readable, the first because: {reason}", file=first)
    _write_rejects(out.with_name(out.name + ".rejects.csv"), rejected)
    return EmbeddingResult(out, rows, width, rejected)


class _Parquet:
    """Opens the file at the first rows, when the width is known, and writes it by row groups."""

    def __init__(self, file: Path, provenance: Mapping[str, str], row_group: int) -> None:
        self.file, self.provenance, self.row_group = file, provenance, row_group
        self.opened: Any = None
        self.images: list[ImageRecord] = []
        self.parts: list[NDArray[np.float32]] = []

    def write(self, images: Sequence[ImageRecord], features: NDArray[np.float32]) -> None:
        self.images += images
        self.parts.append(features)
        if len(self.images) >= self.row_group:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        if not self.images:
            return
        features = np.concatenate(self.parts)
        flat = pa.Array.from_buffers(pa.float32(), features.size, [None, pa.py_buffer(features)])
        table = pa.table(
            {
                "path": _strings(_utf8(image.name) for image in self.images),
                "sha256": _strings(image.sha256 for image in self.images),
                FEATURES: pa.FixedSizeListArray.from_arrays(flat, features.shape[1]),
            }
        )
        if self.opened is None:
            schema = table.schema.with_metadata(self.provenance)
            # Dictionaries and statistics gain nothing on floats that hardly ever repeat.
            self.opened = parquet.ParquetWriter(self.file, schema, use_dictionary=False, write_statistics=False)
        self.opened.write_table(table.cast(self.opened.schema))
        self.images, self.parts = [], []

    def close(self) -> None:
        if self.opened is not None:
            self.opened.close()


@contextmanager
def _parquet(out: Path, provenance: Mapping[str, str], row_group: int) -> Iterator[_Writer]:
    try:
        import pyarrow as pa  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            "writing Parquet needs pyarrow", file=out, do='run: pip install "tlkit[parquet]", or end the name in .npy'
        ) from error
    with atomic_file(out) as temporary:
        writer = _Parquet(temporary, provenance, row_group)
        try:
            yield writer
            writer.flush()
        finally:
            writer.close()


@contextmanager
def _npy(out: Path, _provenance: Mapping[str, str], _row_group: int) -> Iterator[_Writer]:
    class Npy:
        """Opens the array at the first rows, when the width is known."""

        array: NpyWriter | None = None

        def write(self, images: Sequence[ImageRecord], features: NDArray[np.float32]) -> None:
            self.array = self.array or NpyWriter(data, features.shape[1:], "<f4")
            self.array.write(features)
            table.writerows([image.name, image.sha256] for image in images)

    sidecar = out.with_name(out.name + ".csv")
    with atomic_file(out) as array, _csv(sidecar, ["path", "sha256"]) as table, array.open("wb") as data:
        writer = Npy()
        yield writer
        if writer.array is not None:
            writer.array.close()


WRITERS = {".parquet": _parquet, ".npy": _npy}


@contextmanager
def _csv(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Yield a CSV writer of an atomic file."""
    with (
        atomic_file(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text,
    ):
        table = csv.writer(text)
        table.writerow(columns)
        yield table


def _strings(values: Iterable[str]) -> Any:
    """Return a column of Parquet; `pa.array` would import pandas if that is installed, for a quarter of a second."""
    import pyarrow as pa

    builder = pa.lib.StringBuilder()
    builder.append_values(list(values))
    return builder.finish()


def _utf8(path: str) -> str:
    """Return a path as Parquet can hold it: bytes that are not UTF-8 are escaped, as in caf\\xe9.jpg."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _provenance(model: Model) -> dict[str, str]:
    """Return the model's metadata, which is stored with the features."""
    facts = {key: value for key, value in model.session.metadata.items() if key != metadata.LABELS}
    return {**facts, metadata.PREPROCESSING: metadata.preprocessing_json(model.preprocessing)}


def _write_rejects(file: Path, rejected: dict[str, str]) -> None:
    if not rejected:
        file.unlink(missing_ok=True)  # an earlier run's describes other features
        return
    with _csv(file, ["path", "reason"]) as table:
        table.writerows(rejected.items())
