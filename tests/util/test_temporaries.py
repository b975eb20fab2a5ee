"""All that is written takes its place in one step, whoever else writes, and what a killed process left goes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from tlkit.errors import TlkitError, UsageError
from tlkit.util import temporaries
from tlkit.util.files import atomic_dir, atomic_file, check_new, temporary_dir
from tlkit.util.temporaries import sweep

REPLACING = """
import sys
import tempfile
from pathlib import Path
from tlkit.util import files, temporaries
if sys.argv[3] == "aside":
    temporaries.exchange = lambda one, other: False
for number in range(150):
    with files.atomic_dir(Path(sys.argv[1]), replace=lambda path: None) as folder:
        (folder / "whose").write_text(sys.argv[2])
        (folder / "again").write_text(sys.argv[2])
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from tlkit.util import files, temporaries
temporaries.exchange = lambda one, other: False
rename, left = os.rename, int(sys.argv[2])

def last(source, target):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

os.rename = last
with files.atomic_dir(Path(sys.argv[1]), replace=lambda path: None) as folder:
    (folder / "new").touch()
"""


def run(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])


@pytest.mark.parametrize("way", ["exchange", "aside"])
def test_two_processes_replace_one_folder_and_none_fails(tmp_path, way):
    out = tmp_path / "place" / "out"
    both = [run(REPLACING, out, name, way) for name in ("one", "other")]
    assert [each.wait() for each in both] == [0, 0]
    assert os.listdir(out.parent) == ["out"]
    assert (out / "whose").read_text() == (out / "again").read_text()


@pytest.mark.parametrize("at", [1, 2])
def test_a_folder_set_aside_by_a_killed_process_comes_back(tmp_path, at):
    out = tmp_path / "out"
    out.mkdir()
    (out / "before").touch()
    assert run(KILLED, out, at).wait() == -signal.SIGKILL
    assert out.exists() == (at == 1)
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["before"]


def test_only_what_belongs_to_nobody_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = f".a.txt.{gone.pid}-5.abcdefgh.part"
    strangers = {".part", "a.part", ".a.old", f".a.{gone.pid}.part", "b.abcdefgh.part"}
    for name in {left, *strangers}:
        (tmp_path / name).touch()
    with atomic_file(tmp_path / "a.txt") as own, atomic_dir(tmp_path / "b") as folder:
        sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*strangers, own.name, folder.name}


@pytest.mark.skipif(temporaries.fcntl is None, reason="the system has no flock")
def test_what_another_container_writes_is_not_removed(tmp_path, monkeypatch):
    """Its processes have numbers of their own, so that the writer seems to be gone; the lock says that it is not."""
    with atomic_file(tmp_path / "a"):
        monkeypatch.setattr(temporaries, "_start", lambda _: None)
        sweep(tmp_path)
        assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("content", ["photo.jpg", None], ids=["a folder", "a file"])
def test_what_appears_during_the_work_is_not_replaced(tmp_path, content):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="out: it exists already"), atomic_dir(out):  # noqa: PT012 - inside is the work
        if content is None:
            out.touch()
        else:
            out.mkdir()
            (out / content).touch()
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("content", ["photo.jpg", None], ids=["a folder", "a file"])
def test_what_appears_at_the_very_end_is_not_replaced(tmp_path, monkeypatch, content):
    out, rename = tmp_path / "out", os.rename

    def late(source, target):
        out.mkdir() if content else out.touch()
        if content:
            (out / content).touch()
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(UsageError, match="out: it exists already"), atomic_dir(out):
        pass
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_dir(tmp_path / "link", replace=lambda _: None) as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["new"]
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]
    with pytest.raises(UsageError):
        check_new(tmp_path / "link")


def test_temporary_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".tlkit.{gone.pid}-5.abcdefgh.part/deep").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    with temporary_dir() as one, temporary_dir() as other:
        assert {path.name for path in tmp_path.iterdir()} == {"kept", one.name, other.name}
    assert os.listdir(tmp_path) == ["kept"]


def test_a_folder_set_aside_is_kept_where_nothing_can_be_renamed(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", os.rename
    out.mkdir()
    (out / "precious").touch()

    def failing(source, target):
        if target == out:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(temporaries, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(TlkitError), atomic_dir(out, replace=lambda _: None):
        pass
    assert [path.parent.suffix for path in tmp_path.rglob("precious")] == [".old"]
