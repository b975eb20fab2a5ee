"""One run per output: the second is told who is at work, and a killed run is in nobody's way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tlkit.errors import ResourceError, UsageError
from tlkit.util import locks, temporaries
from tlkit.util.locks import claim

HOLDING = """
import sys
from pathlib import Path
from tlkit.util.locks import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(temporaries.fcntl is None, reason="the system has no flock")


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_told_who_writes_it(tmp_path, holder):
    says = rf"run: another run writes it: process {holder.pid} on \S*, since .*: -c .*run; wait until it has finished"
    with pytest.raises(ResourceError, match=says):
        claim(tmp_path / "run").__enter__()
    assert os.listdir(tmp_path) == [".run.lock"]
    holder.communicate()
    with claim(tmp_path / "run"):
        pass
    assert os.listdir(tmp_path) == []


def test_another_thread_or_call_of_the_same_process_waits_as_well(tmp_path):
    with claim(tmp_path / "run"), pytest.raises(ResourceError, match=f"process {os.getpid()} on"):
        claim(tmp_path / "run").__enter__()


def test_a_killed_run_is_in_nobodys_way_and_is_cleaned_up_after(tmp_path, holder):
    (tmp_path / f".run.{holder.pid}-5.abcdefgh.part").mkdir()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with claim(tmp_path / "run"):
        assert os.listdir(tmp_path) == [".run.lock"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["precious", "{}x", '{"pid": 1}', "[1]"])
def test_a_file_of_somebody_else_is_not_lost(tmp_path, content):
    (tmp_path / ".run.lock").write_text(content)
    with pytest.raises(UsageError, match=r"\.run\.lock: tlkit needs this name for a lock, and did not write this file"):
        claim(tmp_path / "run").__enter__()
    assert (tmp_path / ".run.lock").read_text() == content


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").touch()
    (tmp_path / ".run.lock").symlink_to("precious")
    with pytest.raises(ResourceError, match="run: can't write"):
        claim(tmp_path / "run").__enter__()


def test_a_lock_that_was_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    file, flock = tmp_path / ".run.lock", locks.flock

    def late(descriptor):
        monkeypatch.setattr(locks, "flock", flock)
        file.unlink()  # by the owner before, between opening and locking
        return flock(descriptor)

    monkeypatch.setattr(locks, "flock", late)
    with claim(tmp_path / "run"):
        assert file.exists()
        with pytest.raises(ResourceError):
            claim(tmp_path / "run").__enter__()


def test_folders_are_made_and_those_that_stay_empty_removed(tmp_path):
    out = tmp_path / "a" / "b" / "run"
    with claim(out):
        assert out.parent.is_dir()
    assert os.listdir(tmp_path) == []
    with claim(out):
        out.touch()
    assert os.listdir(out.parent) == ["run"]


def test_inside_a_folder_or_for_nothing(tmp_path):
    with claim(tmp_path, inside=True), claim(None):
        assert os.listdir(tmp_path) == [".lock"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("length", [230, 300])
def test_a_name_too_long_is_refused_before_the_work(tmp_path, length):
    """A shorter one than the system's 255 bytes, as what is written beside it has a longer name."""
    with pytest.raises(ResourceError, match="name too long; choose a shorter name"):
        claim(tmp_path / ("x" * length)).__enter__()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("output", [".", "..", "/", "a/.."])
def test_an_output_without_a_name_is_refused(output):
    with pytest.raises(UsageError, match="written under its own name"), claim(Path(output)):
        pass
