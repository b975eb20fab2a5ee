"""The audit of a job: every commit and every file is read, and rows + rejects must be the images of the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tlkit.data.scan import FileCounts
from tlkit.embedding.job import META, Commit, Job, read_commit, shard_files
from tlkit.errors import ArtifactError, GateError
from tlkit.plugin.contract import Tick
from tlkit.util.files import sha256
from tlkit.util.schema import parse_json
from tlkit.util.text import counted, listed

FIRST = 10  # rejected images and shards that are named


@dataclass(frozen=True, slots=True)
class JobStatus:
    """State of a job: its images, rows and rejects, and its shards that are done, failed or missing."""

    out: str
    identity: str
    images: int  # of the manifest
    rows: int
    rejects: int
    width: int
    skipped: Mapping[str, int]  # files of the sources that are no images, by the ends of their names
    shards: int
    done: int
    failed: Mapping[int, str]  # shard to reason
    missing: tuple[int, ...]
    seconds: float  # of all shards that are done, added up
    rejected: Mapping[str, str]  # the first rejected images: key to reason

    def __fspath__(self) -> str:
        return self.out

    @property
    def files(self) -> FileCounts:
        """All files of the sources, counted."""
        rejected = {"in the rejects of the parts": self.rejects} if self.rejects else {}
        return FileCounts(self.rows, rejected, self.skipped)

    @property
    def complete(self) -> bool:
        """True if every image of the manifest is a row or a reject."""
        return self.rows + self.rejects == self.images and self.done == self.shards

    def __repr__(self) -> str:
        state = f"{self.rows:,} rows of {self.width} features and {counted(self.rejects, 'reject')}"
        of = f"of {counted(self.images, 'image')}"
        if self.complete:
            return f"{state} {of}, in {counted(self.shards, 'part')}"
        shards = f"{self.done:,} of {counted(self.shards, 'shard')} done, {len(self.failed):,} failed"
        return f"{state} so far {of}; {shards}, {len(self.missing):,} missing"

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        failed = {str(shard): reason for shard, reason in self.failed.items()}
        more = {"failed": failed, "missing": list(self.missing), "complete": self.complete}
        return {**fields, "skipped": dict(self.skipped), "rejected": dict(self.rejected), **more}


def status(job: Job, only: Iterable[int] | None = None) -> JobStatus:
    """Return the state of a job by its records, without reading parts; `only` some shards are looked at."""
    there = _names(job)
    return _state(job, _records(job, range(job.shards) if only is None else only, there), there)


def _names(job: Job) -> set[str]:
    """Return the names of all files of a job, those of its records below `META`."""
    return job.folder.names() | {f"{META}/{name}" for name in job.folder.names(META)}


def _records(job: Job, shards: Iterable[int], there: set[str]) -> dict[int, Commit | str]:
    """Return the commit of each shard, or the reason why it does not count, where these files are there."""
    found: dict[int, Commit | str] = {}
    for shard in shards:
        found[shard] = read_commit(job, shard) if job.commit(shard) in there else "missing"
        if isinstance(found[shard], Commit) and not {*shard_files(job, shard)} <= there:
            found[shard] = "its files are gone"
    return found


def _state(job: Job, records: Mapping[int, Commit | str], there: set[str]) -> JobStatus:
    commits: list[Commit] = []
    failed: dict[int, str] = {}
    missing: list[int] = []
    for shard, found in records.items():
        if isinstance(found, Commit):
            commits.append(found)
        elif job.failed(shard) in there:
            failed[shard] = _reason(job, shard)
        else:
            missing.append(shard)
    rejecting = (commit.shard for commit in commits if commit.rejects)
    return JobStatus(
        job.folder.place,
        job.record.identity,
        job.record.rows,
        sum(commit.rows for commit in commits),
        sum(commit.rejects for commit in commits),
        job.record.width,
        job.record.skipped,
        job.shards,
        len(commits),
        failed,
        tuple(missing),
        round(sum(commit.seconds for commit in commits), 3),
        dict(_first_rejects(job, rejecting)),
    )


def check(job: Job, only: Iterable[int] | None = None, tick: Tick | None = None) -> JobStatus:
    """Return the state of a job, or of `only` some shards, once every file has the hash of its commit.

    Raises GateError that names what is missing or no part of the job, or the equation that does not hold, and
    ArtifactError for a file that was changed.
    """
    shards = range(job.shards) if only is None else tuple(only)
    there = _names(job)
    records = _records(job, shards, there)
    found = _state(job, records, there)
    if found.failed or found.missing:
        reasons = [f"shard {shard}: {reason}" for shard, reason in found.failed.items()]
        reasons += [f"shard {shard} is missing" for shard in found.missing]
        what = f"{len(reasons)} of {counted(len(shards), 'shard')} are not done: {listed(reasons, separator='; ')}"
        raise GateError(what, file=job.folder.place, do="give the same command again")
    parts = {job.part(shard) for shard in range(job.shards)}
    if others := sorted(name for name in there - parts if name[0] not in "._"):
        what = f"readers of the folder would take {listed(others)} for a part of the job"
        raise GateError(what, file=job.folder.place, do="move them away and give the same command again")
    for commit in records.values():
        if isinstance(commit, Commit):  # all are: none is failed or missing
            _check_shard(job, commit)
        if tick is not None:
            tick(1)
    images = sum(map(job.images, shards))
    if found.rows + found.rejects != images:
        what = f"{found.rows} rows and {found.rejects} rejects are not the {images} images of the manifest"
        raise GateError(what, file=job.folder.place, do="give the same command again, in another folder")
    return found


def _check_shard(job: Job, commit: Commit) -> None:
    from pyarrow import ArrowException, parquet

    shard = commit.shard
    again = f"remove {job.folder.at(job.commit(shard))} and give the same command again"
    counts = []
    for name, digest in commit.files.items():
        place = job.folder.at(name)
        try:
            with job.folder.reading(name) as file:
                if sha256(file) != digest:
                    raise ArtifactError("it was changed since it was written", file=place, do=again)
                counts.append(parquet.read_metadata(file).num_rows)
        except (OSError, ArrowException) as error:
            raise ArtifactError("it can't be read", file=place, do=again) from error
    if counts != [commit.rows, commit.rejects] or sum(counts) != job.images(shard):
        what = f"it has {counts[0]} rows and {counts[1]} rejects of {counted(job.images(shard), 'image')}"
        what += f"; its record says {commit.rows} and {commit.rejects}"
        raise GateError(what, file=job.folder.at(job.part(shard)), do=again)


def _first_rejects(job: Job, shards: Iterable[int]) -> Iterator[tuple[str, str]]:
    from pyarrow import ArrowException, parquet

    left = FIRST
    for shard in shards:
        if not left:
            return
        try:
            with job.folder.reading(job.rejects(shard)) as file:
                table = parquet.read_table(file, columns=["key", "reason"]).slice(0, left)
        except (OSError, ArrowException):
            continue  # the audit says so
        left -= len(table)
        yield from zip(*(column.to_pylist() for column in table.columns), strict=True)


def _reason(job: Job, shard: int) -> str:
    try:
        return str(parse_json(job.folder.read(job.failed(shard)))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "for an unknown reason"
