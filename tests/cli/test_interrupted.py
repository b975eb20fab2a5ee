"""A command that is stopped from outside: by a signal, a full disk, a reader that goes away, or a bug of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.distribution import at_start
from tests.kit.tiny import write_images

# Everything is written and nothing has taken its place yet when a result is first made durable.
SIGNAL_ITSELF = """
import os
import signal
fsync = os.fsync
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` has it ignored


def interrupted_fsync(descriptor):
    if {part!r} in os.readlink(f"/proc/self/fd/{{descriptor}}"):
        os.kill(os.getpid(), {number})
    fsync(descriptor)


os.fsync = interrupted_fsync
"""


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / "photos")


def names(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see which file is written")
@pytest.mark.parametrize(
    ("line", "number", "code", "says"),
    [
        ("train {photos} --strategy frozen -o out", signal.SIGINT, 130, "interrupted"),
        ("embed {run} {photos} -o f.parquet", signal.SIGINT, 130, "interrupted"),
        ("embed {run} {photos} -o f.npy", signal.SIGTERM, 143, "terminated"),
        ("embed {run} {photos} -o f.npy", signal.SIGHUP, 129, "terminated"),
    ],
    ids=["train", "embed to Parquet", "embed to npy", "a terminal that is closed"],
)
def test_a_signal_leaves_nothing_behind(console_script, story, tmp_path, photos, line, number, code, says):
    place, site = tmp_path / "place", tmp_path / "site"
    place.mkdir()
    site.mkdir()
    at_start(site, SIGNAL_ITSELF.format(part=str(place), number=int(number)))
    arguments = line.format(photos=photos, run=story.run).split()
    finished = console_script(*arguments, cwd=place, env={**story.env, "PYTHONPATH": str(site)})
    assert (finished.code, finished.out) == (code, "")
    assert finished.problems == f"tlkit: {says}\n"
    assert names(place) == []


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        ("train {photos} --strategy frozen -o out", 4_000_000),
        ("embed {run} {photos} -o f.parquet", 50_000),
        ("embed {run} {photos} -o f.npy", 50_000),
    ],
    ids=["train", "embed to Parquet", "embed to npy"],
)
def test_a_disk_that_takes_no_more_is_told_of_and_nothing_stays(tlkit, story, tmp_path, photos, line, limit):
    place = tmp_path / "place"
    place.mkdir()
    out = place / line.split()[-1]
    arguments = line.format(photos=photos, run=story.run).split()
    finished = tlkit(*arguments, cwd=place, env=story.env, largest_file=limit)
    assert (finished.code, finished.out) == (5, "")
    assert finished.problems.startswith(f"tlkit: {out.name}: can't write: "), finished.err
    assert finished.problems.count("\n") == 1
    assert names(place) == []


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "predict {run} {root}/test",
        "predict {run} {root}/test --json",
        "inspect {run}",
        "plugins",
        "completion fish",
    ],
)
def test_a_reader_that_goes_away_is_no_error(story, line):
    reading, writing = os.pipe()
    os.close(reading)
    script = Path(sys.executable).with_name("tlkit")
    arguments = line.format(run=story.run, root=story.root).split()
    process = subprocess.run(
        [script, *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **story.env},
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (0, "")


def test_a_pipe_to_head(shell, story):
    finished = shell("tlkit predict run test | head -1", cwd=story.root, env=story.env)
    assert finished.code == 0
    assert finished.out.count("\n") == 1
    assert "rror" not in finished.err
