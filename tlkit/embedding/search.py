"""Exact search over the features of a job or of one Parquet file: a blocked matrix product with the best k kept.

`FeatureSet` streams blocks of rows, so that the memory does not grow with the number of rows; what fits into a limit is
kept between searches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlkit.embedding.job import is_job, open_job, read_commit
from tlkit.errors import ArtifactError, DataError, UsageError
from tlkit.graph import metadata
from tlkit.plugin.contract import FEATURES
from tlkit.util.files import sha256
from tlkit.util.parquet import require_pyarrow
from tlkit.util.statistics import unit

Array = NDArray[np.float32]
BLOCK = 8192  # rows that are multiplied at once
KEPT = 2**30  # bytes of features that are kept in memory between searches
METRICS = ("cosine", "dot")
AGAIN = "give the command of tlkit embed again"
SAMPLE = 100_000  # rows, evenly spaced, that the whitening is computed from


class Block(NamedTuple):
    """Consecutive rows of a feature set: number of the first one, and the transformed features `(N, width)`."""

    first: int
    rows: Array


@dataclass(frozen=True, slots=True)
class Transform:
    """Transform of features and queries before they are compared; by default nothing but the metric's own.

    `power` is an exponent below 1 that keeps the sign and damps large features; `whiten` the number of principal
    components that are scaled to variance 1. Both are followed by the L2 norm if the metric is cosine.
    """

    metric: str = "cosine"
    power: float = 1.0
    whiten: int = 0

    def check(self, width: int) -> None:
        """Raise a UsageError for values that make no sense."""
        if self.metric not in METRICS:
            raise UsageError(f"metric is one of {', '.join(METRICS)}, not {self.metric!r}")
        if not 0.0 < self.power <= 1.0:
            raise UsageError(f"power must lie in (0, 1], not {self.power}")
        if not 0 <= self.whiten <= width:
            raise UsageError(f"whiten must be at most the {width} features, not {self.whiten}")

    def damped(self, rows: Array) -> Array:
        """Return features after the power transform, on the unit sphere where they are whitened next."""
        rows = np.sign(rows) * np.abs(rows) ** np.float32(self.power) if self.power < 1.0 else rows
        return unit(rows) if self.whiten else rows


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The most similar rows of each query, best first: their numbers `(N, k)` and scores float32 `(N, k)`."""

    rows: NDArray[np.int64]
    scores: Array


class FeatureSet:
    """The rows of a job's folder, or of a Parquet file that `embed` wrote, in order."""

    def __init__(self, place: Path, transform: Transform = Transform()) -> None:
        require_pyarrow(place)
        from pyarrow import ArrowException, parquet

        self.place, self.transform = place, transform
        self.job = open_job(place) if is_job(place) else None
        files = [place] if self.job is None else [place / self.job.part(shard) for shard in range(self.job.shards)]
        if self.job is None and not place.is_file():
            raise DataError("neither a job of features nor a file of them", file=place, do="see: tlkit embed --help")
        if place.suffix == ".npy":
            do = "write them with: tlkit embed MODEL IMAGES -o features.parquet"
            raise UsageError("a .npy file has no names of images", file=place, do=do)
        self._counts: dict[Path, int] = {}
        for file in files:
            try:
                self._counts[file] = parquet.read_metadata(file).num_rows
            except (OSError, ArrowException) as error:
                what = f"its features can't be read: {error}"
                raise ArtifactError(what, file=file, do=AGAIN) from error
        schema = parquet.read_schema(files[0])
        self.key = "path" if "path" in schema.names else "key"
        for name in (FEATURES, self.key):
            if name not in schema.names:
                raise DataError(f"it has no column {name}", file=files[0])
        self.metadata = {
            key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for key, value in (schema.metadata or {}).items()
        }
        if metadata.PREPROCESSING not in self.metadata:
            raise DataError("it is no file of features that tlkit wrote", file=files[0])
        if not len(self):
            raise DataError("it has no rows", file=place)
        self.width = self._width(next(file for file, rows in self._counts.items() if rows))
        transform.check(self.width)
        self._kept: list[Block] | None = None
        self.whitening: tuple[Array, Array] | None = None  # mean and axes, once they are needed

    def __len__(self) -> int:
        return sum(self._counts.values())

    @property
    def transformed_width(self) -> int:
        """Number of features after the transform."""
        return self.transform.whiten or self.width

    def digest(self) -> str:
        """Return a hash of all rows: of the file, or of the hashes of a job's parts."""
        if self.job is None:
            return sha256(self.place)
        hashes = [self.job.record.identity]
        for shard in range(self.job.shards):
            commit = read_commit(self.job, shard)
            if isinstance(commit, str):
                raise ArtifactError(f"shard {shard} is not done: {commit}", file=self.place, do="resume the job first")
            hashes += sorted(commit.files.values())
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def names(self, rows: NDArray[np.int64]) -> list[tuple[str, int]]:
        """Return the key of each row, and the number of its part."""
        from pyarrow import parquet

        found: dict[int, tuple[str, int]] = {}
        first = 0
        for part, (file, count) in enumerate(self._counts.items()):
            inside = np.unique(rows[(rows >= first) & (rows < first + count)])
            if len(inside):
                keys = parquet.read_table(file, columns=[self.key]).column(0)
                found |= {int(row): (keys[int(row) - first].as_py(), part) for row in inside}
            first += count
        return [found[int(row)] for row in rows.reshape(-1)]

    def search(self, queries: Array, k: int = 10) -> Neighbors:
        """Return the `k` rows that are most similar to each of some features `(N, width)`; fewer if there are fewer.

        The result is exact. Of equal scores the row that comes first wins.
        """
        check_count(k)
        return self.nearest(self.transformed(queries), k)

    def nearest(self, wanted: Array, k: int) -> Neighbors:
        """Return the `k` rows with the highest scores for each of some transformed features."""
        k = min(k, len(self))
        scores = np.empty((len(wanted), 0), np.float32)
        rows = np.empty((len(wanted), 0), np.int64)
        for block in self.blocks():
            found = wanted @ block.rows.T
            best = _best(found, k)
            scores = np.concatenate([scores, np.take_along_axis(found, best, 1)], 1)
            rows = np.concatenate([rows, best + block.first], 1)
            order = np.lexsort((rows, -scores), axis=1)[:, :k]
            scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        return Neighbors(rows, scores)

    def blocks(self) -> Iterator[Block]:
        """Yield the transformed rows in blocks; they are kept for the next search if all of them fit."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Block] | None = [] if len(self) * self.transformed_width * 4 <= KEPT else None
        for first, rows in self._raw():
            block = Block(first, self.transformed(rows))
            if kept is not None:
                kept.append(block)
            yield block
        self._kept = kept

    def _raw(self) -> Iterator[tuple[int, Array]]:
        from pyarrow import ArrowException, parquet

        first = 0
        for file in self._counts:
            try:
                with parquet.ParquetFile(file, memory_map=True) as opened:
                    for batch in opened.iter_batches(BLOCK, columns=[FEATURES]):
                        flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                        rows = flat.astype(np.float32, copy=False).reshape(len(batch), self.width)
                        if not np.isfinite(rows).all():
                            raise ArtifactError("some of its features are not finite", file=file, do=AGAIN)
                        yield first, rows
                        first += len(batch)
            except (OSError, ArrowException, ValueError) as error:
                raise ArtifactError(f"its features can't be read: {error}", file=file, do=AGAIN) from error

    def take(self, rows: NDArray[np.int64]) -> Array:
        """Return the transformed features of some rows, in ascending order, in one pass over all of them."""
        found = []
        for block in self.blocks():
            inside = rows[(rows >= block.first) & (rows < block.first + len(block.rows))]
            found.append(block.rows[inside - block.first])
        return np.concatenate(found)

    def transformed(self, queries: Array) -> Array:
        """Return features `(N, width)` as they are compared. Raises UsageError for another shape."""
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise UsageError(f"the queries have the shape {queries.shape}, not (N, {self.width})")
        rows = self.transform.damped(np.asarray(queries, np.float32))
        if self.transform.whiten:
            mean, axes = self.whitening = self.whitening or self._whiten()
            rows = np.asarray((rows - mean) @ axes, np.float32)
        return unit(rows) if self.transform.metric == "cosine" else rows

    def _whiten(self) -> tuple[Array, Array]:
        """Return mean `(width,)` and principal axes `(width, whiten)`, scaled to variance 1, of a sample of rows."""
        step = max(1, len(self) // SAMPLE)
        sample = np.concatenate([rows[(-first) % step :: step] for first, rows in self._raw()])
        if len(sample) <= self.transform.whiten:
            raise UsageError(
                f"{len(sample)} rows are too few to whiten {self.transform.whiten} components", file=self.place
            )
        sample = self.transform.damped(sample)
        mean = sample.mean(0)
        values, axes = np.linalg.eigh(np.cov(sample - mean, rowvar=False))
        order = np.argsort(-values)[: self.transform.whiten]
        scale = np.sqrt(np.maximum(values[order], values.max() * 1e-6))
        return np.asarray(mean, np.float32), np.asarray(axes[:, order] / scale, np.float32)

    @staticmethod
    def _width(file: Path) -> int:
        from pyarrow import parquet, types

        kind = parquet.read_schema(file).field(FEATURES).type
        if types.is_fixed_size_list(kind):
            width = int(kind.list_size)
        elif types.is_list(kind) or types.is_large_list(kind):
            batch = next(parquet.ParquetFile(file).iter_batches(1, columns=[FEATURES]))
            width = len(batch.column(0)[0].as_py() or ())
        else:
            width = 0
        if not width or not types.is_floating(kind.value_type):
            raise DataError(f"its column {FEATURES} holds no lists of floats", file=file)
        return width

    def check_model(self, facts: Mapping[str, Any], file: Path) -> None:
        """Raise an ArtifactError if the features are of another model than that of these `facts`."""
        for key in (metadata.BUNDLE, metadata.PREPROCESSING, metadata.PREFIX + "cut"):
            if self.metadata.get(key) != facts.get(key):
                name = key.removeprefix(metadata.PREFIX)
                what = f"its features were made by another model (another {name}) than {file}"
                raise ArtifactError(what, file=self.place, do="name the bundle that made them with --model")


def check_count(k: int) -> None:
    """Raise a UsageError for a number of neighbors that makes no sense."""
    if k < 1:
        raise UsageError(f"k must be at least 1, not {k}")


def _best(scores: Array, k: int) -> NDArray[np.int64]:
    """Return the positions of the `k` largest values of each row, in order; of equal ones the first."""
    if k >= scores.shape[1]:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    least = np.partition(scores, -k, axis=1)[:, -k]
    found = np.empty((len(scores), k), np.int64)
    for row, (values, limit) in enumerate(zip(scores, least, strict=True)):
        above, equal = np.flatnonzero(values > limit), np.flatnonzero(values == limit)
        found[row] = np.sort(np.concatenate([above, equal[: k - len(above)]]))
    return found
