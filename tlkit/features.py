"""The verbs of the Python API for features of many images: embed them to a file or as a job, and ask for its state."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit import places, resolve
from tlkit.api import load
from tlkit.errors import DataError, UsageError
from tlkit.progress import shown
from tlkit.resolve import StrPath
from tlkit.util.files import is_address, local_path
from tlkit.util.locks import claim
from tlkit.util.resources import cores

if TYPE_CHECKING:
    from tlkit.embedding.audit import JobStatus
    from tlkit.embedding.hits import SearchResult
    from tlkit.embedding.index import IndexRecord
    from tlkit.embedding.job import Place
    from tlkit.plugin.contract import Progress
    from tlkit.runtime.embedding import EmbeddingResult
    from tlkit.runtime.model import Model


def embed(
    model: Model | StrPath,
    images: Sequence[StrPath] | StrPath,
    out: StrPath,
    *,
    workers: int | None = None,
    shard: tuple[int, int] | None = None,
    ray: str | bool = False,
    source: str | None = None,
    options: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    device: str = resolve.AUTO,
    allow_cpu: bool = False,
    progress: Progress | None = None,
) -> EmbeddingResult | JobStatus:
    """Write the features of images to the Parquet or npy file `out`, or as a job to the folder `out`.

    `model` is what `load` returned, or a bundle or a graph that it opens with `device` and `allow_cpu`; "auto" takes
    the device that is done first, and the CPU for a job of several processes. Unreadable images are in the result and
    among the rejects.

    A job lists its images once, embeds them in shards and, given again, resumes; `out` may be an address. `images` are
    places of any source: folders, archives, tables; `source` names one where several read a place, and `options` sets
    its options. `workers` processes share the cores; by default this one has them all. With `shard=(3, 100)` this is
    the third of a hundred tasks that share the work. With `ray` the shards are tasks on the Ray cluster of that address
    or, if it is True, on the one that Ray finds or starts here; `workers` of them run at once. `settings` are `dtype`
    (float32, float16), `vectors` (fixed, list) and `shard_rows`.
    Raises GateError where an image is neither a row nor a reject at the end.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, not {workers}")
    asked: dict[str, Any] = {"workers": workers, "shard": shard, "ray": ray, "source": source, "options": options}
    asked["settings"] = settings
    with ExitStack() as opened:

        def open_model() -> Model:
            if not isinstance(model, str | os.PathLike):
                return model
            several = device == resolve.AUTO and (ray or (workers or 1) > 1)
            on = resolve.CPU if several else device
            return opened.enter_context(load(model, graph="trunk", device=on, allow_cpu=allow_cpu))

        bars = opened.enter_context(shown(progress))
        if not os.path.splitext(out)[1]:
            return _embed_as_job(open_model, images, os.fspath(out), bars, **asked)
        place = local_path(out)
        if given := [name for name, value in asked.items() if value]:
            raise UsageError(f"{given[0]} is for a job", file=place, do="name a folder to write to")
        return _embed_to_file(open_model(), images, place, bars)


def embedding_status(out: StrPath) -> JobStatus:
    """Return the state of an embedding job: its images, rows and rejects, and the shards done, failed and missing."""
    from tlkit.embedding.audit import status
    from tlkit.embedding.job import open_job

    return status(open_job(os.fspath(out)))


def index(
    features: StrPath,
    *,
    k: int = 10,
    metric: str = "cosine",
    power: float = 1.0,
    whiten: int = 0,
    min_recall: float = 0.95,
    progress: Progress | None = None,
) -> IndexRecord:
    """Index features for an approximate search, in a folder beside them; return its recall and speed.

    The arguments are those of `search`. Of 256 rows the `k` nearest are compared with the exact ones: raises GateError,
    and writes nothing, where fewer than `min_recall` of them are found.
    """
    from tlkit.embedding.index import build, place_of, require_usearch
    from tlkit.embedding.search import FeatureSet, Transform

    require_usearch(local_path(features))
    found = FeatureSet(local_path(features), Transform(metric, power, whiten))
    with claim(place_of(found.place)), shown(progress) as bars:
        return build(found, k, min_recall, cores(), bars)


def search(
    features: StrPath,
    queries: Sequence[StrPath] | StrPath,
    *,
    k: int = 10,
    metric: str = "cosine",
    power: float = 1.0,
    whiten: int = 0,
    approximate: bool = False,
    model: Model | StrPath | None = None,
    html: StrPath | None = None,
) -> SearchResult:
    """Return the `k` rows of features that are most similar to each query image: exactly, or by the index.

    `features` is the folder of a job or a Parquet file of `embed`, `metric` cosine or dot. `power` below 1 damps large
    features, and `whiten` scales that many principal components to variance 1; for an `approximate` search they must be
    those of the index. `model` is needed for a file, or where the graph that the job was made with is gone. `html` is
    the file of a page with the images.
    """
    from tlkit.embedding.hits import Hit, SearchResult, write_page
    from tlkit.embedding.index import ApproximateSearch, require_usearch
    from tlkit.embedding.search import FeatureSet, Transform
    from tlkit.pages.html import check
    from tlkit.runtime.embedding import provenance

    page = resolve.optional_path(html)
    if page is not None:
        check(page)
    if approximate:
        require_usearch(local_path(features))
    found = FeatureSet(local_path(features), Transform(metric, power, whiten))
    if model is None:
        if found.job is None:
            raise UsageError("a file does not say which graph made it", file=found.place, do="name it with --model")
        model = found.job.graph
        if not os.path.exists(model):
            do = "name it, or its bundle, with --model"
            raise DataError("the graph that made these features is gone", file=model, do=do)
    opened = resolve.opened(model, "trunk")
    found.check_model(provenance(opened), opened.file)
    files = resolve.image_files(queries).files
    nearest: FeatureSet | ApproximateSearch = ApproximateSearch(found) if approximate else found
    neighbors = nearest.search(opened.embed(files), k)
    recall = nearest.record.recall if isinstance(nearest, ApproximateSearch) else None
    named = found.names(neighbors.rows)
    count = neighbors.rows.shape[1]
    hits = [
        Hit(key, float(score), int(row))
        for (key, _), score, row in zip(named, neighbors.scores.flat, neighbors.rows.flat, strict=True)
    ]
    by_query = tuple(tuple(hits[number * count : (number + 1) * count]) for number in range(len(files)))
    result = SearchResult(tuple(map(str, files)), by_query, len(found), metric, recall)
    if page is not None:
        parts = {hit.key: part for hit, (_, part) in zip(hits, named, strict=True)}
        write_page(page, result, lambda number: files[number].read_bytes(), places.image_reader(found.job, parts))
    return result


def _embed_as_job(
    open_model: Callable[[], Model],
    images: Sequence[StrPath] | StrPath,
    out: str,
    progress: Progress,
    *,
    workers: int | None,
    shard: tuple[int, int] | None,
    ray: str | bool,
    source: str | None,
    options: Mapping[str, object] | None,
    settings: Mapping[str, object] | None,
) -> JobStatus:
    from tlkit.embedding.local import in_process, in_processes, started
    from tlkit.embedding.run import JobRequest, run_job
    from tlkit.embedding.storage import folder_at

    processes = 1 if ray else workers or 1
    with started(processes if processes > 1 else 0) as ahead:  # they import while the model is opened
        model = open_model()
        found = places.find_places(images, source, options or {})
        readers = places.open_places(found)
        request = JobRequest(folder := folder_at(out), found, readers, settings or {}, shard)
        if ray:
            from tlkit.embedding.cluster import in_cluster
            from tlkit.embedding.shard import versions
            from tlkit.worker import run_shard

            start = {**_start(model, folder.place, 1, found), "versions": versions()}
            executor = in_cluster(None if ray is True else ray, workers, start, run_shard)
        elif processes > 1:
            executor = in_processes(processes, _start(model, folder.place, processes, found), ahead)
        else:
            executor = in_process(model, readers)
        return run_job(model, request, executor, progress)


def _embed_to_file(model: Model, images: Sequence[StrPath] | StrPath, out: Path, progress: Progress) -> EmbeddingResult:
    from tlkit.runtime.embedding import embed

    sources = resolve.local_paths(images)
    found = resolve.image_files(sources)
    with claim(out):
        result = embed(model, found.files, out, progress("embedding", len(found.files)), sources)
    return replace(result, skipped=found.skipped)


def _start(model: Model, out: str, workers: int, images: Sequence[Place]) -> dict[str, Any]:
    """Return what each worker process opens, with its share of the cores."""
    device = getattr(model.session, "device", resolve.CPU)
    job = out if is_address(out) else os.path.abspath(out)
    facts = {"job": job, "model": str(model.file.absolute()), "device": device}
    return {**facts, "places": [asdict(each) for each in images], "threads": max(1, cores() // workers)}
