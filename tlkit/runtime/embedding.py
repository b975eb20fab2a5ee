"""Write the features of many images to one file: in order, in bounded memory, atomically."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.data.scan import FileCounts
from tlkit.errors import DataError, ResourceError, UsageError
from tlkit.graph import metadata
from tlkit.plugin.contract import FEATURES
from tlkit.runtime.model import Model
from tlkit.runtime.pipeline import ImageRecord
from tlkit.util.files import NpyWriter, atomic_file, check_own, translate_os_errors
from tlkit.util.parquet import check_parquet, strings, vectors
from tlkit.util.text import counted, utf8

ROWS, REJECTS = ("path", "sha256"), ("path", "reason")  # columns of the tables beside the features
ROW_GROUP = 1024  # rows that are collected before they are written

# Dictionaries and statistics gain nothing on floats that hardly ever repeat.
PLAIN: dict[str, Any] = {"use_dictionary": False, "write_statistics": False}

Write = Callable[[Sequence[ImageRecord], NDArray[np.float32]], None]


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """The file, the number and width of its rows; rejected images and skipped files, each path to reason.

    `device` ran the graph; it is empty for other targets than ONNX.
    """

    out: Path
    rows: int
    width: int
    rejected: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    device: str = ""

    @property
    def rejects(self) -> int:
        """Number of rejected images."""
        return len(self.rejected)

    @property
    def images(self) -> int:
        """Number of all images, including the rejected ones."""
        return self.rows + len(self.rejected)

    @property
    def files(self) -> FileCounts:
        """All files of the sources, counted."""
        return FileCounts.of(self.rows, self.rejected, self.skipped)

    def __fspath__(self) -> str:
        return str(self.out)

    def __repr__(self) -> str:
        return f"{self.rows} rows of {self.width} features, {counted(len(self.rejected), 'image')} rejected"

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {**asdict(self), "out": str(self.out), "files": asdict(self.files)}


def embed(
    model: Model, files: Sequence[Path], out: Path, tick: Callable[[int], object], sources: Sequence[Path] = ()
) -> EmbeddingResult:
    """Write the features of `files` to `out`, `.parquet` or `.npy`, in their order.

    Parquet has the columns path, sha256 and features (a fixed-size list of float32). A npy file is `(N, width)`
    float32, with path and sha256 in `out` + `.csv`. Unreadable images are in `out` + `.rejects.csv`. Of an absolute
    path, which says whose machine it was, only what is below the common folder of the `sources` is written.
    """
    open_writer = WRITERS.get(out.suffix.lower())
    if open_writer is None:
        raise UsageError("not a format to write features in", file=out, do="end its name in .parquet or .npy")
    rejects = out.with_name(out.name + ".rejects.csv")
    _check_csv(REJECTS)(rejects)
    rejected: dict[str, str] = {}
    rows, width, written = 0, 0, naming(sources or files)
    with translate_os_errors(out), open_writer(out, provenance(model)) as write:
        for batch in model.stream(files, [FEATURES], hashed=True):
            rejected |= {image.name: image.reason for image in batch.images if image.reason is not None}
            if readable := batch.readable():
                features = batch.arrays[FEATURES]
                rows, width = rows + len(readable), features.shape[1]
                write([replace(image, name=written(image.name)) for image in readable], features)
            tick(len(batch.images))
        if not rows:
            first, reason = next(iter(rejected.items()))
            raise DataError(f"none of the {len(files)} images is readable, the first because: {reason}", file=first)
    _write_rejects(rejects, {written(name): reason for name, reason in rejected.items()})
    device = getattr(model.session, "device", "")
    return EmbeddingResult(out, rows, width, rejected, device=device)


def naming(sources: Sequence[Path]) -> Callable[[str], str]:
    """Return the function that gives the name under which a path is written: as it is given, unless it is absolute."""
    folders = [os.path.dirname(os.path.abspath(source)) for source in sources if source.is_absolute()]
    if not folders:
        return lambda path: path
    common = os.path.commonpath(folders)
    return lambda path: os.path.relpath(path, common) if os.path.isabs(path) else path


@contextmanager
def row_groups(write: Write) -> Iterator[Write]:
    """Yield what collects rows and has `write` write them in groups of `ROW_GROUP` or more, and the rest at the end."""
    collected: list[ImageRecord] = []
    parts: list[NDArray[np.float32]] = []

    def collect(images: Sequence[ImageRecord], features: NDArray[np.float32]) -> None:
        collected.extend(images)
        parts.append(features)
        if len(collected) >= ROW_GROUP:
            flush()

    def flush() -> None:
        write(collected, np.concatenate(parts))
        collected.clear()
        parts.clear()

    yield collect
    if collected:
        flush()


@contextmanager
def _parquet(out: Path, provenance: Mapping[str, str]) -> Iterator[Write]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ResourceError(
            "writing Parquet needs pyarrow", file=out, do='run: pip install "tlkit[parquet]", or end the name in .npy'
        ) from error
    opened: Any = None  # at the first rows, when the width is known

    def write(images: Sequence[ImageRecord], features: NDArray[np.float32]) -> None:
        nonlocal opened
        columns = {
            "path": strings(utf8(image.name) for image in images),
            "sha256": strings(image.sha256 for image in images),
            FEATURES: vectors(features),
        }
        table = pa.table(columns)
        if opened is None:
            schema = table.schema.with_metadata(provenance)
            opened = closing.enter_context(parquet.ParquetWriter(temporary, schema, **PLAIN))
        opened.write_table(table.cast(opened.schema))

    with (
        atomic_file(out, check=lambda path: check_parquet(path, metadata.PREPROCESSING)) as temporary,
        ExitStack() as closing,
        row_groups(write) as collect,
    ):
        yield collect


@contextmanager
def _npy(out: Path, _provenance: Mapping[str, str]) -> Iterator[Write]:
    opened: NpyWriter | None = None  # at the first rows, when the width is known

    def write(images: Sequence[ImageRecord], features: NDArray[np.float32]) -> None:
        nonlocal opened
        opened = opened or NpyWriter(data, features.shape[1:], "<f4")
        opened.write(features)
        table.writerows([image.name, image.sha256] for image in images)

    sidecar = out.with_name(out.name + ".csv")
    check = _check_csv(ROWS)

    def check_array(path: Path) -> None:
        check_own(path, lambda _: sidecar.exists())  # a npy file says nothing of who wrote it: its neighbor does
        check(sidecar)

    with atomic_file(out, check=check_array) as array, _csv(sidecar, ROWS) as table, array.open("wb") as data:
        yield write
        if opened is not None:
            opened.close()


WRITERS = {".parquet": _parquet, ".npy": _npy}


@contextmanager
def _csv(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Yield a CSV writer of an atomic file."""
    with (
        atomic_file(file, check=_check_csv(columns)) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text,
    ):
        table = csv.writer(text)
        table.writerow(columns)
        yield table


def _check_csv(columns: Sequence[str]) -> Callable[[Path], None]:
    """Return what refuses to replace a file that is not a table of these columns."""
    header = f"{','.join(columns)}\r\n".encode()

    def is_own(path: Path) -> bool:
        with path.open("rb") as stream:
            return stream.readline(len(header)) == header

    return lambda path: check_own(path, is_own)


def provenance(model: Model) -> dict[str, str]:
    """Return the model's metadata, which is stored with the features."""
    facts = {key: value for key, value in model.session.metadata.items() if key != metadata.LABELS}
    return {**facts, metadata.PREPROCESSING: metadata.preprocessing_json(model.preprocessing)}


def _write_rejects(file: Path, rejected: dict[str, str]) -> None:
    if not rejected:
        _check_csv(REJECTS)(file)
        file.unlink(missing_ok=True)  # an earlier run's describes other features
        return
    with _csv(file, REJECTS) as table:
        table.writerows(rejected.items())
