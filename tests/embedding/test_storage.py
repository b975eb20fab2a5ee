"""A job at an address: the same parts as on this machine, and no wrong success where the storage loses something."""

from __future__ import annotations

import pytest
from pyarrow import parquet

import tlkit
from tests.embedding.test_job import parts
from tlkit.embedding.storage import RemoteFolder
from tlkit.errors import ArtifactError, GateError, ResourceError, UsageError
from tlkit.util.remote import reaching

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
OUT = "memory://bucket/features"


@pytest.fixture(scope="module")
def clean(tiny_trunk, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("storage") / "features"
    tlkit.embed(tiny_trunk, pictures, out, settings={"shard_rows": 10})
    return parts(out)


@pytest.fixture
def storage(tiny_trunk, pictures):
    """The file system with a job that went well."""
    memory = fsspec.filesystem("memory")
    found = tlkit.embed(tiny_trunk, pictures, OUT, settings={"shard_rows": 10})
    assert (found.out, found.rows, found.complete) == (OUT, 36, True)
    yield memory
    memory.rm("/bucket", recursive=True)


def stored(memory):
    files = sorted(file for file in memory.find("/bucket/features") if "/part-" in file and file.endswith(".parquet"))
    return {file.removeprefix("/bucket/features/"): memory.cat_file(file) for file in files}


def test_a_job_at_an_address_resumes(tiny_trunk, pictures, clean, storage):
    assert stored(storage) == clean
    storage.rm_file("/bucket/features/_job/part-00001.json")
    storage.rm_file("/bucket/features/part-00002.parquet")
    assert tlkit.embedding_status(OUT).missing == (1, 2)
    tlkit.embed(tiny_trunk, pictures, OUT)
    assert stored(storage) == clean
    with storage.open("/bucket/features/part-00000.parquet") as part:
        assert parquet.read_table(part).num_rows == 10
    with pytest.raises(UsageError, match="another job is there, with shard_rows 10, not 5"):
        tlkit.embed(tiny_trunk, pictures, OUT, settings={"shard_rows": 5})
    with pytest.raises(UsageError, match="it is not empty, and holds no embedding job"):
        tlkit.embed(tiny_trunk, pictures, "memory://bucket")
    with pytest.raises(UsageError, match=r"features\.parquet: only local files"):
        tlkit.embed(tiny_trunk, pictures, "memory://bucket/features.parquet")


def test_what_a_storage_lost_or_changed_is_no_success(tiny_trunk, pictures, storage, monkeypatch):
    part = "/bucket/features/part-00001.parquet"
    storage.pipe_file(part, storage.cat_file(part)[:-1])
    with pytest.raises(ArtifactError, match=r"part-00001.parquet: it was changed .*; remove memory://bucket/.*json"):
        tlkit.embed(tiny_trunk, pictures, OUT)
    put_file = type(storage).put_file
    monkeypatch.setattr(
        type(storage), "put_file", lambda self, file, path: None if path == part else put_file(self, file, path)
    )
    storage.rm_file("/bucket/features/_job/part-00001.json")
    storage.rm_file(part)
    with pytest.raises(GateError, match="1 of 4 shards are not done: shard 1 is missing"):
        tlkit.embed(tiny_trunk, pictures, OUT)


def test_of_two_runs_that_begin_at_once_one_makes_the_job():
    folder = RemoteFolder("memory://twice")
    folder.create("job.json", b"one")
    folder.create("job.json", b"two")
    assert folder.read("job.json") == b"one"
    folder.remove("job.json")
    folder.remove("job.json")
    assert folder.names() == set()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError("Forbidden"), "does not answer: Forbidden; check the credentials of this storage"),
        (ConnectionError("reset by peer"), "does not answer: reset by peer; see that the storage can be reached"),
    ],
)
def test_what_a_storage_answers_is_one_line(error, says):
    with pytest.raises(ResourceError, match=says), reaching("s3://bucket/a"):
        raise error
    with pytest.raises(KeyError), reaching("s3://bucket/a"):
        raise KeyError  # a bug stays one
