"""Approximate search: a graph of neighbors whose recall against the exact search is measured before it is kept.

The graph is that of Malkov and Yashunin ("Efficient and robust approximate nearest neighbor search using hierarchical
navigable small world graphs", TPAMI 2020), by USearch, in a folder of its own beside the features:

    vectors.usearch    the graph, and the transformed features, in float16 where in float32 they would take over 1 GiB
    whitening.npz      mean and axes, where components are whitened
    index.json         what it was made of and what it gives; written last
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.embedding.job import is_job
from tlkit.embedding.search import KEPT, Array, FeatureSet, Neighbors, Transform, check_count
from tlkit.errors import ArtifactError, GateError, UsageError, require
from tlkit.model.reference_images import spread
from tlkit.plugin.contract import Progress
from tlkit.util.files import atomic_dir, sha256
from tlkit.util.schema import parse_json, read_as

FOLDER, SUFFIX = "_index", ".index"  # in a job, and beside a file
RECORD, VECTORS, WHITENING = "index.json", "vectors.usearch", "whitening.npz"
FORMAT = 1
QUERIES = 256  # rows, evenly spaced, whose neighbors are compared with the exact ones
EXPANSIONS = (64, 128, 256, 512, 1024)  # candidates that a search keeps; the first with enough recall is recorded
SAME = 1e-5  # scores that differ by less are equal
AGAIN = "give the command of tlkit index again"


@dataclass(frozen=True, slots=True)
class IndexRecord:
    """An index: what it was made of, how it is searched, its recall@k and the milliseconds of a query."""

    features: str  # digest of the feature set
    rows: int
    transform: Transform
    k: int
    recall: float
    queries: int  # that the recall was measured with
    expansion: int  # candidates that a search keeps
    ms: float  # of a query, many at once
    exact_ms: float  # of the exact search
    files: dict[str, str]  # name to sha256
    format: int = FORMAT

    def __repr__(self) -> str:
        return (
            f"{self.rows:,} rows indexed; recall@{self.k} {self.recall:.3f} of {self.queries} queries at expansion "
            f"{self.expansion}; {self.ms:.2f} ms a query, exactly {self.exact_ms:.2f} ms"
        )

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)


def require_usearch(file: Path) -> None:
    """Raise a ResourceError that names the command to install usearch, if it is missing."""
    require("usearch", "an index", file)


def place_of(features: Path) -> Path:
    """Return the folder of the index of a job or of a file of features."""
    return features / FOLDER if is_job(features) else features.with_name(features.name + SUFFIX)


def build(features: FeatureSet, k: int, min_recall: float, threads: int, progress: Progress) -> IndexRecord:
    """Index a feature set in the folder beside it. Raises GateError where no expansion gives the recall."""
    from usearch.index import Index

    if not 0.0 < min_recall <= 1.0:
        raise UsageError(f"the recall must lie in (0, 1], not {min_recall}")
    if not 1 <= k < len(features):
        raise UsageError(f"k must be 1 to {len(features) - 1}, not {k}", file=features.place)
    digest, out = features.digest(), place_of(features.place)
    with atomic_dir(out, replace=_check_own) as folder:
        tick = progress("indexing", len(features))
        width = features.transformed_width
        half = features.transform.metric == "cosine" and len(features) * width * 4 > KEPT
        index = Index(ndim=width, metric="ip", dtype="f16" if half else "f32")
        for block in features.blocks():
            index.add(np.arange(block.first, block.first + len(block.rows)), block.rows, threads=threads)
            tick(len(block.rows))
        measured = _measure(index, features, k, min_recall, threads)
        index.save(str(folder / VECTORS))
        if features.whitening is not None:
            np.savez(folder / WHITENING, mean=features.whitening[0], axes=features.whitening[1])
        files = {file.name: sha256(file) for file in sorted(folder.iterdir())}
        record = IndexRecord(digest, len(features), features.transform, k, *measured, files)
        (folder / RECORD).write_text(json.dumps(asdict(record), indent=2))
    return record


def _measure(
    index: Any, features: FeatureSet, k: int, min_recall: float, threads: int
) -> tuple[float, int, int, float, float]:
    """Return recall@k, queries, expansion and the milliseconds of a query, approximately and exactly."""
    chosen = np.array(spread(range(len(features)), QUERIES), np.int64)
    queries = features.take(chosen)
    started = time.perf_counter()
    exact = features.nearest(queries, k + 1)  # the first is the query itself, or an equal one
    exact_ms = 1e3 * (time.perf_counter() - started) / len(chosen)
    found, ms = dict[int, NDArray[np.int64]](), dict[int, float]()
    for expansion in EXPANSIONS:
        index.expansion_search = expansion
        started = time.perf_counter()
        found[expansion] = _searched(index, queries, k + 1, threads).rows
        ms[expansion] = 1e3 * (time.perf_counter() - started) / len(chosen)
    needed = np.unique(np.concatenate(list(found.values())))
    vectors, recall = features.take(needed), 0.0  # in one pass over all of them
    for expansion, rows in found.items():
        scores = np.einsum("nkw,nw->nk", vectors[np.searchsorted(needed, rows)], queries)
        recall = _recall(scores, rows, chosen, exact)
        if recall >= min_recall:
            return recall, len(chosen), expansion, ms[expansion], exact_ms
    what = f"an index of it finds {recall:.3f} of the {k} nearest, less than {min_recall:g}"
    raise GateError(what, file=features.place, do="search it exactly, or accept less with --min-recall")


def _recall(scores: Array, rows: NDArray[np.int64], own: NDArray[np.int64], exact: Neighbors) -> float:
    """Return the share of neighbors whose score is at least that of the last exact one, the query itself left out."""
    counted = (rows != own[:, None]) & (scores >= exact.scores[:, -1:] - SAME)
    k = exact.rows.shape[1] - 1
    return float(np.minimum(counted.sum(1), k).mean() / k)


def _searched(index: Any, queries: Array, k: int, threads: int) -> Neighbors:
    matches = index.search(queries, k, threads=threads)
    keys = np.asarray(matches.keys, np.int64).reshape(len(queries), -1)
    return Neighbors(keys, 1 - np.asarray(matches.distances, np.float32).reshape(len(queries), -1))


class ApproximateSearch:
    """The index of a feature set, opened from its folder. Raises UsageError or ArtifactError for another one."""

    def __init__(self, features: FeatureSet) -> None:
        from usearch.index import Index

        folder = place_of(features.place)
        self.record = record = _read(folder)
        if record.transform != features.transform:
            own = ", ".join(f"{name} {value}" for name, value in asdict(record.transform).items())
            raise UsageError(f"its index was made with {own}", file=folder, do="search with these, or index it again")
        if record.features != features.digest():
            raise ArtifactError("it is the index of other features", file=folder, do=AGAIN)
        for name, digest in {VECTORS: "", **record.files}.items():
            if name not in (VECTORS, WHITENING) or not (folder / name).is_file() or sha256(folder / name) != digest:
                raise ArtifactError("the index was changed", file=folder / name, do=AGAIN)
        if WHITENING in record.files:
            with np.load(folder / WHITENING, allow_pickle=False) as stored:
                features.whitening = stored["mean"], stored["axes"]
        opened: Any = Index.restore(str(folder / VECTORS), view=True)
        opened.expansion_search = record.expansion
        self._features, self._index = features, opened

    def search(self, queries: Array, k: int = 10, threads: int = 0) -> Neighbors:
        """Return up to `k` rows that are similar to each of some features `(N, width)`, most of them the nearest."""
        check_count(k)
        return _searched(self._index, self._features.transformed(queries), min(k, self.record.rows), threads)


def _read(folder: Path) -> IndexRecord:
    try:
        record: IndexRecord = read_as(IndexRecord, parse_json((folder / RECORD).read_bytes()))
    except FileNotFoundError as error:
        raise UsageError("there is no index", file=folder, do="make one with: tlkit index") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"not the record of an index: {error}", file=folder / RECORD, do=AGAIN) from error
    if record.format != FORMAT:
        raise ArtifactError("the index is of another version", file=folder, do=AGAIN)
    return record


def _check_own(folder: Path) -> None:
    """Raise a UsageError unless nothing is there, or an index and nothing else."""
    names = {each.name for each in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and not {RECORD} <= names <= {RECORD, VECTORS, WHITENING}:
        raise UsageError("tlkit did not write this, and does not replace it", file=folder, do="move it away")
