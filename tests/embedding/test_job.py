"""An embedding job: every image is a row or a reject, whoever writes the parts and however often they are killed."""

from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import tlkit
from tests.kit.fake_cuda import replace_cuda
from tests.kit.tiny import write_images
from tlkit.data import decoders as decoders_module
from tlkit.data.decoders import Decoders, Waits
from tlkit.embedding import local, run
from tlkit.embedding import shard as sharding
from tlkit.embedding.audit import check, status
from tlkit.embedding.job import open_job, shard_rows
from tlkit.errors import ArtifactError, DataError, GateError, ResourceError, UsageError
from tlkit.runtime import devices, pipeline
from tlkit.runtime.devices import Speed

SHARDS = {"shard_rows": 10}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """36 images, one without a suffix and one that is cut, and a text."""
    root = write_images(tmp_path_factory.mktemp("job") / "photos")
    (root / "notes.txt").write_text("no image")
    (root / "dark/00.png").rename(root / "dark/unnamed")
    (root / "light/03.png").write_bytes((root / "light/03.png").read_bytes()[:-900])
    return root


@pytest.fixture(scope="module")
def clean(tiny_trunk, photos, tmp_path_factory):
    """The result of one run that nothing disturbed."""
    out = tmp_path_factory.mktemp("clean") / "features"
    tlkit.embed(tiny_trunk, photos, out, settings=SHARDS)
    return out


@pytest.fixture
def job(clean, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(clean, tmp_path / "features")


def parts(out):
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in sorted(out.rglob("part-*.parquet"))}


def test_every_image_is_a_row_or_a_reject(tiny_trunk, photos, clean):
    found = tlkit.embedding_status(clean)
    assert (found.images, found.rows, found.rejects, found.shards, found.done) == (36, 35, 1, 4, 4)
    assert found.complete
    assert list(found.rejected) == ["light/03.png"]
    assert found.skipped == {".txt": 1}
    table = parquet.read_table(clean)  # as one dataset, which the folder _job is no part of
    files = sorted(file for file in photos.rglob("*") if file.is_file() and file.name not in ("notes.txt", "03.png"))
    files = sorted([*files, photos / "dark/03.png", photos / "middle/03.png"])
    assert table["key"].to_pylist() == [file.relative_to(photos).as_posix() for file in files]
    features = table["features"].combine_chunks().flatten().to_numpy().reshape(35, -1)
    assert np.allclose(features, tiny_trunk.embed(files), atol=1e-6)
    assert repr(found) == "35 rows of 8 features and 1 reject of 36 images, in 4 parts"
    assert json.loads(json.dumps(found.to_json()))["complete"]


def test_the_same_command_resumes(tiny_trunk, photos, job, monkeypatch):
    whole = parts(job)
    (job / "_job/part-00002.json").unlink()
    (job / "part-00001.parquet").unlink()
    assert tlkit.embedding_status(job).missing == (1, 2)
    done = []
    embed_shard = sharding.embed_shard
    monkeypatch.setattr(
        sharding, "embed_shard", lambda job, shard, *more: done.append(shard) or embed_shard(job, shard, *more)
    )
    tlkit.embed(tiny_trunk, photos, job)
    assert done == [1, 2]
    assert parts(job) == whole


def test_processes_give_the_same_bytes(tiny_trunk, photos, clean, tmp_path):
    ticks = []

    def progress(what, _total):
        return lambda more, *_: ticks.append((what, more))

    tlkit.embed(tiny_trunk, photos, tmp_path / "f", workers=2, settings=SHARDS, progress=progress)
    assert parts(tmp_path / "f") == parts(clean)
    assert sum(n for what, n in ticks if what == "embedding") == 36


def test_tasks_share_the_shards(tiny_trunk, photos, clean, tmp_path):
    for number in (2, 3, 1):
        found = tlkit.embed(tiny_trunk, photos, tmp_path / "f", shard=(number, 3), settings=SHARDS)
    assert (found.done, found.missing) == (2 if found.shards == 5 else 1, ())
    assert tlkit.embedding_status(tmp_path / "f").complete
    assert parts(tmp_path / "f") == parts(clean)
    with pytest.raises(UsageError, match="no shard 4/3"):
        tlkit.embed(tiny_trunk, photos, tmp_path / "f", shard=(4, 3))


def test_a_worker_that_dies_costs_a_try(tiny_trunk, photos, clean, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "MODULE", "tests.embedding.dying")
    monkeypatch.setenv("DIE", str(tmp_path / "died"))
    tlkit.embed(tiny_trunk, photos, tmp_path / "f", workers=2, settings=SHARDS)
    assert (tmp_path / "died").exists()
    assert parts(tmp_path / "f") == parts(clean)


@pytest.fixture
def decoders(monkeypatch):
    """Processes that decode all images of jobs; the list gets one for each time that they are started."""
    started, starts = [], Decoders.__init__
    monkeypatch.setattr(pipeline, "PROBED", 1)
    monkeypatch.setattr(pipeline, "cores", lambda: 1)
    monkeypatch.setattr(Waits, "seconds", lambda _: 1e3)
    monkeypatch.setattr(
        Decoders, "__init__", lambda made, *given, **more: started.append(made) or starts(made, *given, **more)
    )
    return started


def test_processes_decode_for_all_shards_of_a_job(tiny_trunk, photos, clean, tmp_path, decoders, monkeypatch):
    monkeypatch.setattr(pipeline, "load", None)  # nothing is decoded here
    tlkit.embed(tiny_trunk, photos, tmp_path / "f", settings=SHARDS)
    assert parts(tmp_path / "f") == parts(clean)
    assert len(decoders) == 1
    assert all(process.returncode is not None for process in decoders[0].all)


def test_threads_decode_for_a_job_where_processes_get_no_memory(
    tiny_trunk, photos, clean, tmp_path, decoders, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    tlkit.embed(tiny_trunk, photos, tmp_path / "f", settings=SHARDS)
    assert parts(tmp_path / "f") == parts(clean)
    assert len(decoders) == 1


@pytest.mark.usefixtures("decoders")
def test_a_job_whose_decoders_die_names_the_image_and_resumes(tiny_trunk, photos, clean, tmp_path, monkeypatch):
    answer = decoders_module._answer

    def dying(process, task, contents):
        if any("light/09" in name for name, _ in task["images"]):
            process.kill()
        return answer(process, task, contents)

    with monkeypatch.context() as patch:
        patch.setattr(decoders_module, "_answer", dying)
        with pytest.raises(ResourceError, match="ended 2 times with exit code -9") as caught:
            tlkit.embed(tiny_trunk, photos, tmp_path / "f", settings=SHARDS)
    assert "light/0" in caught.value.file
    assert tlkit.embedding_status(tmp_path / "f").done in (1, 2)
    tlkit.embed(tiny_trunk, photos, tmp_path / "f", settings=SHARDS)
    assert parts(tmp_path / "f") == parts(clean)


@pytest.mark.filterwarnings("ignore::tlkit.errors.TlkitNote")
def test_all_shards_are_embedded_on_the_device_that_was_taken_for_the_first(
    tiny_run, photos, tmp_path, own_cache, monkeypatch
):
    assert own_cache.is_dir()
    _, provider = replace_cuda(monkeypatch)
    speeds = {"cpu": Speed(0.0, 1.0), "cuda": Speed(2.0, 100.0)}  # 36 and 2.4 seconds
    monkeypatch.setattr(devices, "assumed", lambda _: speeds)
    file = tiny_run / "onnx/fp32/trunk.onnx"
    tlkit.embed(file, photos, tmp_path / "f", settings=SHARDS)
    record = open_job(tmp_path / "f").record
    assert (record.device, record.settings.batch_size) == ("cuda", 64)
    speeds["cuda"] = Speed(99.0, 100.0)  # the CPU would be faster now
    expected, used = parts(tmp_path / "f"), len(provider.opened)
    (tmp_path / "f/_job/part-00002.json").unlink()
    tlkit.embed(file, photos, tmp_path / "f")
    assert parts(tmp_path / "f") == expected
    assert any(("CUDAExecutionProvider" in str(each)) for each in provider.opened[used:])
    tlkit.embed(file, photos, tmp_path / "several", workers=2, settings=SHARDS)
    assert open_job(tmp_path / "several").record.device == "cpu"


def test_a_shard_whose_workers_all_die_is_named(tiny_trunk, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "MODULE", "tests.embedding.dying")
    monkeypatch.setenv("DIE", "always")
    monkeypatch.setattr(local, "TRIES", 1)
    with pytest.raises(
        GateError, match=r"1 of 4 shards are not done: shard 2: its worker died 1 times, .* exit code 9"
    ):
        tlkit.embed(tiny_trunk, photos, tmp_path / "f", workers=2, settings=SHARDS)
    found = tlkit.embedding_status(tmp_path / "f")
    assert (found.done, list(found.failed), found.complete) == (3, [2], False)


def test_a_worker_that_can_t_start_ends_the_job(tiny_trunk, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "MODULE", "tests.embedding.nothing")
    with pytest.raises(ResourceError, match="a worker ended with exit code 1 as it started"):
        tlkit.embed(tiny_trunk, photos, tmp_path / "f", workers=2, settings=SHARDS)


def test_another_job_in_the_place_is_refused_by_name(tiny_trunk, photos, job, tmp_path):
    with pytest.raises(
        UsageError, match=r"another job is there, with dtype float32, not float16 and shard_rows 10, not 5"
    ):
        tlkit.embed(tiny_trunk, photos, job, settings={"dtype": "float16", "shard_rows": 5})
    with pytest.raises(UsageError, match=r"another job is there, with other images \(.*photos\)"):
        tlkit.embed(tiny_trunk, photos / "dark", job)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(UsageError, match="it is not empty, and holds no embedding job"):
        tlkit.embed(tiny_trunk, photos, tmp_path / "other", shard=(1, 2))
    with pytest.raises(UsageError, match="workers is for a job; name a folder"):
        tlkit.embed(tiny_trunk, photos, tmp_path / "f.parquet", workers=2)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("part-00001.parquet", ArtifactError, "it was changed since it was written; remove .*part-00001.json"),
        ("_job/part-00001.rejects.parquet", ArtifactError, "it was changed since it was written"),
        ("_job/manifest-*.parquet", ArtifactError, "the manifest of the job was changed"),
        ("_job/job.json", ArtifactError, "not the record of a job"),
    ],
)
def test_a_changed_file_is_refused(tiny_trunk, photos, job, name, error, says):
    (file,) = job.glob(name)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :])
    if name.endswith("json"):
        file.write_bytes(content[:-3])
    with pytest.raises(error, match=says):
        tlkit.embed(tiny_trunk, photos, job)


def test_a_manifest_that_is_gone_is_listed_again(tiny_trunk, photos, job, tmp_path):
    (manifest,) = job.glob("_job/manifest-*")
    content = manifest.read_bytes()
    manifest.unlink()
    assert tlkit.embed(tiny_trunk, photos, job).complete
    assert manifest.read_bytes() == content
    manifest.unlink()
    with pytest.raises(ArtifactError, match="is gone, and the images are not those that were listed"):
        tlkit.embed(tiny_trunk, write_images(tmp_path / "other", per_class=2), job)
    assert not [*job.glob("_job/manifest-*")]


def test_the_audit_finds_what_the_hashes_do_not(job):
    """Somebody who edits a part and its commit still has to account for every image."""
    from tlkit.util.files import sha256

    file, commit = job / "part-00000.parquet", job / "_job/part-00000.json"
    parquet.write_table(parquet.read_table(file).slice(1), file)
    content = json.loads(commit.read_text())
    content["files"]["part-00000.parquet"] = sha256(file)
    commit.write_text(json.dumps(content))
    with pytest.raises(GateError, match="it has 9 rows and 0 rejects of 10 images"):
        check(open_job(job))
    shutil.copy(file, job / "part-00007.parquet")
    with pytest.raises(GateError, match=r"readers of the folder would take part-00007\.parquet for a part of the job"):
        check(open_job(job))
    commit.write_text(json.dumps(content | {"identity": "0" * 64}))
    assert status(open_job(job)).missing == (0,)


def test_files_that_changed_since_they_were_listed(tiny_trunk, tmp_path, monkeypatch):
    root = write_images(tmp_path / "photos", per_class=4)
    prepared = run._prepared

    def and_then(*given):
        job = prepared(*given)
        os.utime(root / "dark/00.png", (1, 1))
        (root / "dark/01.png").write_bytes(b"")
        (root / "dark/02.png").unlink()
        return job

    monkeypatch.setattr(run, "_prepared", and_then)
    found = tlkit.embed(tiny_trunk, root, tmp_path / "f")
    assert found.rejected == {
        "dark/00.png": "has changed since it was listed",
        "dark/01.png": "has changed since it was listed",
        "dark/02.png": "no such file",
    }
    assert (found.rows, found.rejects) == (9, 3)


def test_several_places_and_names(tiny_trunk, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    odd = os.fsdecode(b"dark/caf\xe9.png")
    shutil.copy("dark/01.png", odd)
    try:
        found = tlkit.embed(tiny_trunk, ["dark", "middle", "light/00.png"], tmp_path / "f")
    finally:
        os.unlink(odd)
    keys = parquet.read_table(tmp_path / "f")["key"].to_pylist()
    assert found.rows == len(keys) == 25
    assert {"dark/unnamed", "middle/00.png", "light/00.png"} <= set(keys)
    assert found.rejected == {"dark/caf\\xe9.png": "its name is not UTF-8"}
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        tlkit.embed(tiny_trunk, ["dark", "nowhere"], tmp_path / "g")


def test_a_job_that_was_moved_is_the_same(tiny_trunk, photos, tmp_path):
    """Its record names no folder of this machine, and images elsewhere are its own if they are unchanged."""
    home = shutil.copytree(photos, tmp_path / "one/photos").parent
    other = write_images(tmp_path / "other", per_class=2)
    tlkit.embed(tiny_trunk, home / "photos", home / "features", settings=SHARDS)
    assert str(tmp_path) not in (home / "features/_job/job.json").read_text()
    moved = home.rename(tmp_path / "two")
    assert tlkit.search(moved / "features", photos / "dark/02.png", html=moved / "page.html").hits[0][0].score > 0.999
    assert "data:image/jpeg" in (moved / "page.html").read_text()
    (moved / "features/_job/part-00002.json").unlink()
    assert tlkit.embed(tiny_trunk, moved / "photos", moved / "features").complete
    away = (moved / "photos").rename(tmp_path / "away")
    (moved / "features/_job/part-00001.json").unlink()
    with pytest.raises(UsageError, match=r"with other images \(photos\)"):
        tlkit.embed(tiny_trunk, other, moved / "features")
    assert tlkit.embed(tiny_trunk, away, moved / "features", workers=2).complete


def test_several_absolute_places_have_keys_below_their_common_folder(tiny_trunk, photos, tmp_path):
    tlkit.embed(tiny_trunk, [photos / "dark", photos / "middle"], tmp_path / "f")
    keys = parquet.read_table(tmp_path / "f")["key"].to_pylist()
    assert {key.partition("/")[0] for key in keys} == {"dark", "middle"}


def test_half_precision_and_plain_lists(tiny_trunk, photos, clean, tmp_path):
    tlkit.embed(tiny_trunk, photos, tmp_path / "f", settings={"dtype": "float16", "vectors": "list"})
    table = parquet.read_table(tmp_path / "f")
    assert table.schema.field("features").type == pa.list_(pa.float16())
    halves = np.stack(table["features"].to_pylist())
    whole = np.stack(parquet.read_table(clean)["features"].to_pylist())
    assert np.allclose(halves, whole, rtol=2e-3, atol=2e-3)


def test_nothing_to_embed(tiny_trunk, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: there is no image"):
        tlkit.embed(tiny_trunk, tmp_path / "empty", tmp_path / "f")
    (tmp_path / "empty/a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 1 images is readable"):
        tlkit.embed(tiny_trunk, tmp_path / "empty", tmp_path / "f")
    with pytest.raises(UsageError, match="there is no embedding job"):
        tlkit.embedding_status(tmp_path)


@pytest.mark.parametrize(("rows", "size"), [(1, 256), (16_384, 256), (64_000, 1000), (10**7, 10_000)])
def test_shards_follow_from_the_manifest(rows, size):
    assert shard_rows(rows) == size
