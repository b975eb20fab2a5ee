"""Shards of a job: the same functions whoever calls them, and as often as they are called."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlkit.data.decoding import UnreadableImage
from tlkit.embedding.job import Commit, Job
from tlkit.embedding.manifest import Opened, Row
from tlkit.errors import DataError, ResourceError, TlkitError
from tlkit.plugin.contract import FEATURES
from tlkit.runtime.embedding import PLAIN, row_groups
from tlkit.runtime.model import Model
from tlkit.runtime.pipeline import Batch, ImageRecord, Parts, StoredImage
from tlkit.util.files import sha256
from tlkit.util.parquet import strings, vectors
from tlkit.version import __version__


class Reject(NamedTuple):
    """An image of the manifest that has no features."""

    key: str
    locator: str
    reason: str


def embed_shards(
    job: Job, shards: Sequence[int], model: Model, places: Sequence[Opened], tick: Callable[[int], object]
) -> list[Commit]:
    """Embed shards one after the other; images of the next are decoded while the last ones of another are computed.

    Batches begin with each shard, so that it gives the same bytes again on the same machine. `tick` is called with the
    number of images of each batch.
    """
    size = job.record.settings.batch_size
    rows = ((StoredImage(row.key, partial(_read, row, places[row.source])) for row in job.rows(n)) for n in shards)
    images = Parts(rows, sum(map(job.images, shards)))
    with closing(model.stream(images, [FEATURES], hashed=True, batch_size=size)) as batches:
        return [embed_shard(job, n, islice(batches, math.ceil(job.images(n) / size)), tick) for n in shards]


def embed_shard(job: Job, shard: int, batches: Iterable[Batch], tick: Callable[[int], object]) -> Commit:
    """Write the features of one shard, its rejected images and, last of all, its commit, in the manifest's order."""
    start, hashes, images, reasons = time.perf_counter(), dict[str, str](), 0, dict[int, str]()
    with _part(job, shard, hashes) as write:
        for batch in batches:
            reasons |= {n: image.reason for n, image in enumerate(batch.images, images) if image.reason is not None}
            if readable := batch.readable():
                write(readable, batch.arrays[FEATURES])
            images += len(batch.images)
            tick(len(batch.images))
    rows = job.rows(shard) if reasons else []
    rejects = [Reject(rows[n].key, rows[n].locator, reason) for n, reason in reasons.items()]
    _write_rejects(job, shard, rejects, hashes)
    seconds = round(time.perf_counter() - start, 3)
    done = Commit(shard, job.record.identity, images - len(rejects), len(rejects), hashes, seconds, versions())
    job.folder.write_json(job.commit(shard), asdict(done))
    job.folder.remove(job.failed(shard))
    return done


def note_failure(job: Job, shard: int, reason: str) -> None:
    """Record why a shard is not done, for who asks for the status."""
    with suppress(TlkitError, OSError):  # the disk may be full, and the reason is told anyway
        job.folder.write_json(job.failed(shard), {"shard": shard, "reason": reason})


def _read(row: Row, opened: Opened) -> bytes:
    """Return the bytes of an image, or raise `UnreadableImage` with the reason of the reject."""
    if row.problem:
        raise UnreadableImage(row.problem)
    try:
        content = opened.read(row)
    except UnreadableImage:
        raise
    except DataError as error:
        raise UnreadableImage(error.what) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ResourceError(f"{opened.place} can't be read: {reason}", file=row.key) from error
    if row.size not in (-1, len(content)):
        raise UnreadableImage(f"has changed since it was listed: {len(content):,} bytes, not {row.size:,}")
    return content


@contextmanager
def _part(
    job: Job, shard: int, hashes: dict[str, str]
) -> Iterator[Callable[[Sequence[ImageRecord], NDArray[np.float32]], None]]:
    """Yield what writes rows to the part of a shard, which is replaced at the end and gets its hash."""
    import pyarrow as pa
    from pyarrow import parquet

    settings = job.record.settings

    def table(images: Sequence[ImageRecord], features: NDArray[np.float32]) -> Any:
        numbers = features.astype(settings.dtype, copy=False)
        columns = {"key": strings(image.name for image in images), "sha256": strings(image.sha256 for image in images)}
        return pa.table(columns | {FEATURES: vectors(numbers, fixed=settings.vectors == "fixed")})

    def write(images: Sequence[ImageRecord], features: NDArray[np.float32]) -> None:
        writer.write_table(table(images, features).cast(schema))

    empty = table([], np.empty((0, job.record.width), np.float32))
    schema = empty.schema.with_metadata({**job.record.model, "tlkit.job": job.record.identity})
    with job.folder.writing(job.part(shard)) as file:
        with parquet.ParquetWriter(file, schema, **PLAIN) as writer, row_groups(write) as collect:
            yield collect
        hashes[job.part(shard)] = sha256(file)


def _write_rejects(job: Job, shard: int, rejects: Sequence[Reject], hashes: dict[str, str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    keys, locators, reasons = zip(*rejects, strict=True) if rejects else ((), (), ())
    escaped = (locator.encode("utf-8", "backslashreplace").decode() for locator in locators)
    columns = {"key": strings(keys), "locator": strings(escaped), "reason": strings(reasons)}
    with job.folder.writing(job.rejects(shard)) as file:
        parquet.write_table(pa.table(columns), file)
        hashes[job.rejects(shard)] = sha256(file)


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide on the bytes of a part."""
    import onnxruntime
    import PIL
    import pyarrow as pa

    packages = {"onnxruntime": onnxruntime, "pillow": PIL, "pyarrow": pa}
    return {"tlkit": __version__} | {name: package.__version__ for name, package in packages.items()}
