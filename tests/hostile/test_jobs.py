"""An embedding job that is killed before any of its steps: the next run ends as if nothing had happened."""

from __future__ import annotations

import shutil

import pytest

import tlkit
from tests.kit.hostile import everybody_gone, finish, start, states
from tests.kit.tiny import write_images
from tlkit.runtime.model import Model
from tlkit.util import temporaries

pytestmark = pytest.mark.skipif(temporaries.fcntl is None, reason="the system has no flock")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp("jobs") / "photos", per_class=4)
    (root / "dark/00.png").write_bytes(b"no image")
    return root


def embed(model, photos, out):
    return tlkit.embed(model, photos, out, settings={"shard_rows": 5}, progress=tlkit.silent)


def content(out):
    """The parts, and the names of all files."""
    parts = {file.name: file.read_bytes() for file in sorted(out.rglob("*.parquet"))}
    return parts, sorted(str(file.relative_to(out.parent)) for file in out.parent.rglob("*"))


def test_a_killed_job_resumes_to_the_same_bytes(tiny_trunk, photos, tmp_path):
    (tmp_path / "whole").mkdir()
    embed(tiny_trunk, photos, tmp_path / "whole/features")
    whole = content(tmp_path / "whole/features")
    (tmp_path / "again").mkdir()
    left = states(
        tmp_path / "again", lambda: embed(tiny_trunk, photos, tmp_path / "again/features"), tmp_path / "states"
    )
    assert len(left) >= 25
    unfinished = 0
    for place in left:
        with everybody_gone():
            out = place / "features"
            if (out / "_job/job.json").exists():
                unfinished += not tlkit.embedding_status(out).complete
            assert embed(tiny_trunk, photos, out).complete
            assert content(out) == whole
        shutil.rmtree(place)
    assert unfinished >= 10


def test_tasks_at_once_share_one_job(tiny_run, tiny_trunk, photos, tmp_path):
    """Three tasks begin together, two of them the same: one of these is refused, or all agree."""
    embed(tiny_trunk, photos, tmp_path / "whole")
    out = tmp_path / "features"

    def task(number):
        with Model.open(tiny_run, graph="trunk") as own:
            given = {"settings": {"shard_rows": 5}, "progress": tlkit.silent}
            try:
                tlkit.embed(own, photos, out, shard=(number, 2), **given)
            except tlkit.ResourceError:
                return 5
        return 0

    tasks = [start(lambda number=number: task(number)) for number in (1, 2, 2)]
    codes = [finish(pid) for pid in tasks]
    assert codes[0] == 0
    assert sorted(codes[1:]) in ([0, 0], [0, 5])
    assert tlkit.embedding_status(out).complete
    assert {name: (out / name).read_bytes() for name in parts(out)} == {
        name: (tmp_path / "whole" / name).read_bytes() for name in parts(tmp_path / "whole")
    }


def parts(out):
    return sorted(str(file.relative_to(out)) for file in out.rglob("*.parquet"))
