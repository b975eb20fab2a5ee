"""Run an embedding job: list its images once, embed the shards that are missing, and audit the result."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from tlkit.embedding import audit
from tlkit.embedding.audit import JobStatus
from tlkit.embedding.job import (
    DTYPES,
    META,
    RECORD,
    VECTORS,
    Job,
    JobRecord,
    Place,
    Settings,
    check_same,
    is_job,
    manifest_name,
    open_job,
    shard_rows,
    stored,
)
from tlkit.embedding.local import Executor
from tlkit.embedding.manifest import Opened, list_images, write_manifest
from tlkit.embedding.storage import Folder, LocalFolder
from tlkit.errors import ArtifactError, DataError, ResourceError, UsageError
from tlkit.plugin.contract import Progress
from tlkit.runtime.devices import AutomaticSession
from tlkit.runtime.embedding import provenance
from tlkit.runtime.model import Model
from tlkit.util.files import sha256
from tlkit.util.locks import BUSY, claim
from tlkit.util.parquet import require_pyarrow
from tlkit.util.text import format_seconds
from tlkit.version import __version__

WAIT = 0.5  # seconds between looks at a job that another process is listing


@dataclass(frozen=True)
class JobRequest:
    """A job as a command asks for it: what to read, the settings that were named, and of how many tasks this is one."""

    folder: Folder
    places: Sequence[Place]
    opened: Sequence[Opened]
    settings: Mapping[str, Any]
    task: tuple[int, int] | None = None  # 1 to n, and n


def run_job(model: Model, request: JobRequest, executor: Executor, progress: Progress) -> JobStatus:
    """Embed what is missing of a job, of all shards or those of one task, and return its state after the audit.

    A job in the folder is resumed; another one is a UsageError that names the difference. Raises GateError where an
    image of the manifest is neither a row nor a reject.
    """
    require_pyarrow(request.folder.place)
    _check_settings(request)
    with _claimed(request):
        job = _prepared(model, request, progress)
        only = range(job.shards) if request.task is None else job.share(*request.task)
        before = audit.status(job, only)
        missing = sorted([*before.failed, *before.missing])
        images = sum(map(job.images, only))
        tick = progress("embedding", images)
        tick(images - sum(map(job.images, missing)))
        if missing:
            if isinstance(model.session, AutomaticSession):  # all shards on one device, as others give other bytes
                model.session.settle(images, job.record.device)
            executor(job, missing, _rated(tick, sum(map(job.images, missing))))
        found = audit.check(job, only, progress("checking", len(only)))
    if not found.rows and found.rejects:
        name, reason = next(iter(found.rejected.items()))
        raise DataError(f"none of the {found.rejects} images is readable, the first because: {reason}", file=name)
    return found


def _check_settings(request: JobRequest) -> None:
    for name, allowed in (("dtype", DTYPES), ("vectors", VECTORS)):
        if request.settings.get(name, allowed[0]) not in allowed:
            raise UsageError(f"{name} is one of {', '.join(allowed)}, not {request.settings[name]!r}")
    if request.settings.get("shard_rows", 1) < 1:
        raise UsageError("a shard has at least one image")
    if request.task is not None and not 1 <= request.task[0] <= request.task[1]:
        number, of = request.task
        raise UsageError(f"there is no shard {number}/{of}", do="number them from 1/n to n/n")


@contextmanager
def _claimed(request: JobRequest) -> Iterator[None]:
    """Hold the lock of a whole job, or of one task of it: tasks run at once, and the same one only once.

    An object storage has no locks: two runs of one job both write the same bytes there.
    """
    folder, lock = request.folder, None
    if folder.names() - {META} and not is_job(folder.place):
        raise UsageError("it is not empty, and holds no embedding job", file=folder.place, do="choose another -o")
    if isinstance(folder, LocalFolder):
        task = None if request.task is None else "task-{}-of-{}".format(*request.task)
        lock = folder.root if task is None else folder.root / META / task
    with claim(lock):
        yield


def _prepared(model: Model, request: JobRequest, progress: Progress) -> Job:
    """Return the job in the folder, which is made if there is none; only one process at a time makes it."""
    folder = request.folder
    while request.task is None or not is_job(folder.place):
        try:
            with claim(folder.root / META / RECORD if isinstance(folder, LocalFolder) else None):
                if not is_job(folder.place):
                    _make(model, request, progress)
                break
        except ResourceError as error:
            if BUSY not in error.what or request.task is None:
                raise
            time.sleep(WAIT)  # another task lists the images
    _restore_manifest(request, progress)
    job = open_job(folder.place)
    check_same(job, _facts(model), request.places, request.opened, request.settings)
    return job


def _make(model: Model, request: JobRequest, progress: Progress) -> None:
    """List the images of a job, and write its manifest and then its record."""
    folder, session = request.folder, model.session
    digest, rows, skipped = _list(request, progress)
    device = session.settle(rows) if isinstance(session, AutomaticSession) else getattr(session, "device", "")
    given = {"shard_rows": shard_rows(rows), "batch_size": session.batch_size, **request.settings}
    record = JobRecord(
        model=_facts(model),
        width=model.width,
        places=tuple(replace(each, place=stored(each.place, folder)) for each in request.places),
        rows=rows,
        skipped=dict(skipped),
        manifest=digest,
        settings=Settings(**given),
        tlkit=__version__,
        graph=stored(str(model.file.absolute()), folder),
        device=device,
    )
    facts = asdict(replace(record, identity=record.digest()))
    folder.create(f"{META}/{RECORD}", json.dumps(facts, indent=1).encode())


def _restore_manifest(request: JobRequest, progress: Progress) -> None:
    """List the images again if the manifest is gone. Raises ArtifactError if they are not those of the job."""
    folder = request.folder
    wanted = open_job(folder.place, checked=False).record.manifest
    if os.path.basename(manifest_name(wanted)) in folder.names(META):
        return
    digest, *_ = _list(request, progress)
    if digest != wanted:
        folder.remove(manifest_name(digest))
        what = "its manifest is gone, and the images are not those that were listed"
        raise ArtifactError(what, file=folder.place, do="start the job again in another folder")


def _list(request: JobRequest, progress: Progress) -> tuple[str, int, Counter[str]]:
    """Write the manifest of the images as they are now; return its SHA-256, its rows, and the files that are none."""
    skipped: Counter[str] = Counter()
    with request.folder.scratch(META) as scratch:
        file = scratch / "manifest.parquet"
        rows = write_manifest(list_images(request.opened, skipped), file, progress("listing images", 0))
        if not rows:
            raise DataError("there is no image", file=", ".join(map(str, request.places)))
        digest = sha256(file)
        with request.folder.writing(manifest_name(digest)) as written:
            os.replace(file, written)
    return digest, rows, skipped


def _facts(model: Model) -> dict[str, str]:
    """Return what decides on the features of a model."""
    facts = provenance(model)
    return facts | ({"tlkit.graph": sha256(model.file)} if model.file.is_file() else {})


def _rated(tick: Callable[..., object], images: int) -> Callable[[int], None]:
    """Return what counts images for a progress bar, with their rate and the time that is left."""
    done, start = 0, time.monotonic()

    def count(more: int) -> None:
        nonlocal done
        done += more
        seconds = time.monotonic() - start
        rate = done / seconds if seconds and done > 0 else 0.0
        left = f", {format_seconds((images - done) / rate)} left" if rate else ""
        tick(more, f"{rate:.0f} images/s{left}")

    return count
