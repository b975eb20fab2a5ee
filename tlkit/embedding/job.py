"""An embedding job: a folder of parts that any number of processes write, in any order and as often as they like.

    features/part-00042.parquet                 the rows of one shard, a contiguous range of the manifest
    features/_job/job.json                      what the job is; written once, after its manifest-….parquet
    features/_job/part-00042.rejects.parquet    what could not be read, with the reason
    features/_job/part-00042.json               the commit: written last, it says that the shard is done
    features/_job/part-00042.failed.json        why a shard is not done

Readers of Parquet leave out a folder whose name begins with an underscore, so `features/` is one dataset for them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tlkit.embedding.manifest import Opened, Row, read_rows
from tlkit.embedding.storage import Folder, folder_at
from tlkit.errors import ArtifactError, DataError, UsageError
from tlkit.model.reference_images import spread
from tlkit.util.files import is_address, sha256
from tlkit.util.schema import parse_json, read_as

META, RECORD = "_job", "job.json"
FORMAT = 1
DTYPES, VECTORS = ("float32", "float16"), ("fixed", "list")
SAMPLE = 16  # images that are looked at to see if moved ones are those of a job
FEWEST, MOST, SHARDS = 256, 10_000, 64  # images in a shard, and the number of shards that is aimed at between them


@dataclass(frozen=True, slots=True)
class Place:
    """A place that a job reads, and the source that reads it."""

    place: str  # an address, or an absolute path; in the record of a job as `stored` has it
    source: str
    distribution: str
    version: str  # of the distribution
    options: Mapping[str, Any] = field(default_factory=dict)
    given: str = ""  # its name in keys and messages

    def __str__(self) -> str:
        return self.given


@dataclass(frozen=True, slots=True)
class Settings:
    """Choices that decide on the bytes of the parts."""

    shard_rows: int
    batch_size: int
    dtype: str = "float32"
    vectors: str = "fixed"  # or "list", for readers without fixed-size lists


@dataclass(frozen=True, slots=True)
class JobRecord:
    """All that a job is, as its folder records it. `identity` is the hash of what decides on the parts."""

    model: Mapping[str, str]  # metadata of the graph, its preprocessing included, and the hash of its file
    width: int
    places: tuple[Place, ...]
    rows: int  # of the manifest
    skipped: Mapping[str, int]  # files that are no images, by the ends of their names
    manifest: str  # sha256
    settings: Settings
    tlkit: str
    graph: str  # file of the graph, to embed queries with, as `stored` has it
    device: str = ""  # that was taken for the first shard
    identity: str = ""
    format: int = FORMAT

    def digest(self) -> str:
        """Return the identity that follows from the other fields."""
        decides = [dict(self.model), self.width, self.rows, self.manifest, asdict(self.settings), self.format]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Commit:
    """Record of a shard that is done."""

    shard: int
    identity: str
    rows: int
    rejects: int
    files: Mapping[str, str]  # name relative to the job's folder to sha256
    seconds: float
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """A job in its folder."""

    folder: Folder
    record: JobRecord

    @property
    def shards(self) -> int:
        """Number of shards."""
        return math.ceil(self.record.rows / self.record.settings.shard_rows)

    def bounds(self, shard: int) -> tuple[int, int]:
        """Return the first row of a shard in the manifest, and the first one behind it."""
        size = self.record.settings.shard_rows
        return shard * size, min((shard + 1) * size, self.record.rows)

    def images(self, shard: int) -> int:
        """Return the number of rows of a shard in the manifest."""
        first, last = self.bounds(shard)
        return last - first

    def rows(self, shard: int) -> list[Row]:
        """Return the rows of a shard in the manifest."""
        return read_rows(self.manifest, *self.bounds(shard))

    @property
    def places(self) -> tuple[Place, ...]:
        """The places that the job reads, if they lie to its folder as they did when it was made."""
        return tuple(replace(each, place=located(each.place, self.folder)) for each in self.record.places)

    @property
    def graph(self) -> str:
        """The file of the graph, as for `places`."""
        return located(self.record.graph, self.folder)

    @property
    def manifest(self) -> Path:
        """The manifest, on this machine."""
        return self.folder.kept(manifest_name(self.record.manifest), self.record.manifest)

    def part(self, shard: int) -> str:
        """Return the name of the file with the features of a shard."""
        return f"part-{shard:05}.parquet"

    def rejects(self, shard: int) -> str:
        """Return the name of the file with the rejected images of a shard."""
        return f"{META}/part-{shard:05}.rejects.parquet"

    def commit(self, shard: int) -> str:
        """Return the name of the file that says that a shard is done."""
        return f"{META}/part-{shard:05}.json"

    def failed(self, shard: int) -> str:
        """Return the name of the file that says why a shard is not done."""
        return f"{META}/part-{shard:05}.failed.json"

    def share(self, number: int, of: int) -> range:
        """Return the shards of task `number`, 1 to `of`: contiguous and of equal number but for one."""
        return range((number - 1) * self.shards // of, number * self.shards // of)


def stored(place: str, folder: Folder) -> str:
    """Return a place as a job in a folder records it, so that both can be moved and no home directory is named.

    A path is relative to the folder or, if only one of them is below it, to the home directory. Addresses, and paths
    that have no folder in common with the job's, stay as they are.
    """
    if is_address(place):
        return place
    path, home = Path(place), Path(os.path.expanduser("~"))
    root = None if is_address(folder.place) else Path(folder.place).absolute()
    if path.is_relative_to(home) and not (root and root.is_relative_to(home)):
        return f"~/{path.relative_to(home).as_posix()}"
    if root and path.parts[:2] == root.parts[:2]:
        return Path(os.path.relpath(path, root)).as_posix()
    return place


def located(place: str, folder: Folder) -> str:
    """Return the place that a job in a folder recorded, as an address or an absolute path."""
    if is_address(place):
        return place
    return os.path.abspath(os.path.join(folder.place, os.path.expanduser(place)))


def manifest_name(digest: str) -> str:
    """Return the name of the manifest of this SHA-256: two tasks that list at once may find different images."""
    return f"{META}/manifest-{digest[:16]}.parquet"


def is_job(place: Path | str) -> bool:
    """Return whether a folder holds a job."""
    try:
        return bool(folder_at(place).read(f"{META}/{RECORD}"))
    except OSError:
        return False


def open_job(place: Path | str, *, checked: bool = True) -> Job:
    """Return the job in a folder. Raises ArtifactError where its record was changed, or its manifest."""
    folder = folder_at(place)
    file = folder.at(f"{META}/{RECORD}")
    again = "start the job again in another folder"
    try:
        record = read_as(JobRecord, parse_json(folder.read(f"{META}/{RECORD}")))
    except FileNotFoundError as error:
        raise UsageError("there is no embedding job", file=place, do="give the folder of: tlkit embed -o") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"not the record of a job: {error}", file=file, do=again) from error
    if record.format != FORMAT or record.identity != record.digest():
        raise ArtifactError("the record of the job was changed, or is of another version", file=file, do=again)
    job, file = Job(folder, record), folder.at(manifest_name(record.manifest))
    again = "remove it and give the command of the job again, which lists the images again"
    try:
        same = not checked or sha256(job.manifest) == record.manifest
    except OSError as error:
        raise ArtifactError("the manifest of the job can't be read", file=file, do=again) from error
    if not same:
        raise ArtifactError("the manifest of the job was changed", file=file, do=again)
    return job


def shard_rows(rows: int) -> int:
    """Return the default number of images in a shard; it follows from the manifest alone, so that it resumes."""
    return min(MOST, max(FEWEST, math.ceil(rows / SHARDS)))


def check_same(
    job: Job,
    model: Mapping[str, str],
    places: Sequence[Place],
    opened: Sequence[Opened],
    given: Mapping[str, object],
) -> None:
    """Raise a UsageError that names how the job in a folder differs from what was asked for.

    `given` are the settings that were named; the others are those of the job.
    """
    record, differing = job.record, []
    names = {key: key.rpartition(".")[2].replace("_", " ") for key in {**record.model, **model}}
    changed = [names[key] for key in sorted(names) if record.model.get(key) != model.get(key)]
    if changed:
        differing.append(f"another model (its {', '.join(changed)})")
    if not _same_images(job, places, opened):
        differing.append(f"other images ({', '.join(map(str, record.places))})")
    settings = asdict(record.settings)
    differing += [f"{name} {settings[name]}, not {value}" for name, value in given.items() if settings[name] != value]
    if differing:
        what = f"another job is there, with {' and '.join(differing)}"
        raise UsageError(what, file=job.folder.place, do="choose another -o, or give the command of that job")


def _same_images(job: Job, places: Sequence[Place], opened: Sequence[Opened]) -> bool:
    """Return whether places hold the images of a job: they are its places, or a few of it are all there, unchanged."""

    def facts(all_of: Sequence[Place]) -> list[object]:
        return [(each.source, dict(each.options), each.given if len(all_of) > 1 else "") for each in all_of]

    if facts(job.places) != facts(places):
        return False
    if [each.place for each in job.places] == [each.place for each in places]:
        return True
    chosen = [job.rows(shard)[0] for shard in spread(range(job.shards), SAMPLE)]
    readable = [row for row in chosen if not row.problem]
    return bool(readable) and all(_is_there(row, opened[row.source]) for row in readable)


def _is_there(row: Row, opened: Opened) -> bool:
    try:
        return bool(row.version) and row.size in (-1, len(opened.read(row)))
    except (DataError, OSError):
        return False


def read_commit(job: Job, shard: int) -> Commit | str:
    """Return the commit of a shard, or the reason why it does not count."""
    try:
        found: Commit = read_as(Commit, parse_json(job.folder.read(job.commit(shard))))
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError) as error:
        return f"its record can't be read: {error}"
    if found.identity != job.record.identity or found.shard != shard:
        return "its record is of another job"
    if set(found.files) != set(shard_files(job, shard)):
        return "its record names other files"
    return found


def shard_files(job: Job, shard: int) -> tuple[str, ...]:
    """Return the names of the files that the commit of a shard is about."""
    return job.part(shard), job.rejects(shard)
