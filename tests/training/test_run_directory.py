"""The run directory keeps what an interrupted training needs, and resumes nothing else than that training."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.kit.course import Stopped
from tlkit.errors import TlkitWarning, UsageError
from tlkit.training.run_directory import (
    check_unfinished,
    differences,
    discard_finished,
    folder_of,
    is_unfinished,
    once,
    run_directory,
)


def test_it_goes_on_success_and_stays_with_a_checkpoint(tmp_path):
    out = tmp_path / "run"
    with run_directory(out, {"a": 1}, resume=False) as folder:
        assert folder == folder_of(out)
        (folder / "checkpoint-1").touch()
    assert not folder.exists()
    assert not is_unfinished(out)
    with suppress(Stopped), run_directory(out, {"a": 1}, resume=False):
        (folder / "checkpoint-1").touch()
        raise Stopped
    assert is_unfinished(out)
    with pytest.raises(UsageError, match=r"run: a training of it was interrupted; resume it .* or discard"):
        check_unfinished(out, resume=False)
    check_unfinished(out, resume=True)
    with pytest.raises(UsageError, match=r"the interrupted run differs: a was 1, is 2; use the options and images of"):
        run_directory(out, {"a": 2}, resume=True).__enter__()
    with run_directory(out, {"a": 1}, resume=True):
        assert (folder / "checkpoint-1").exists()


def test_nothing_stays_without_progress(tmp_path):
    with suppress(Stopped), run_directory(tmp_path / "run", {}, resume=False):
        raise Stopped
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_identity_is_refused_with_the_way_out(tmp_path):
    with suppress(Stopped), run_directory(tmp_path / "run", {}, resume=False) as folder:
        (folder / "checkpoint-1").touch()
        raise Stopped
    (folder / "identity.json").write_text("{")
    with pytest.raises(UsageError, match=r"can't be read: .*; discard the interrupted run: rm -r "):
        run_directory(tmp_path / "run", {}, resume=True).__enter__()


def test_a_record_is_computed_once(tmp_path):
    assert once(tmp_path / "record.json", lambda: {"a": 1}) == ({"a": 1}, True)
    assert once(tmp_path / "record.json", lambda: {"a": 2}) == ({"a": 1}, False)


class TestDifferences:
    def test_each_is_named_by_its_place(self):
        before = {"seed": 0, "strategy": {"name": "full", "epochs": 10}, "images": {"a.jpg": "train ant 12"}}
        now = {"seed": 1, "strategy": {"name": "full", "epochs": 20}, "images": {"b.jpg": "train ant 12"}}
        assert list(differences(before, now)) == [
            "seed was 0, is 1",
            "strategy.epochs was 10, is 20",
            "images.a.jpg was train ant 12, is not there",
            "images.b.jpg was not there, is train ant 12",
        ]
        assert list(differences(before, before)) == []

    def test_of_phases_it_is_the_number_and_the_option(self):
        before = {"phase": [{"epochs": 1, "batch_size": 8}, {"epochs": 2, "batch_size": 8}]}
        now = {"phase": [{"epochs": 1, "batch_size": 8}, {"epochs": 3, "batch_size": 8}]}
        assert list(differences(before, now)) == ["phase 2.epochs was 2, is 3"]
        assert list(differences(before, {"phase": before["phase"][:1]})) == ["phase was 2 of them, is 1 of them"]


def test_another_machine_is_told_and_resumed(tmp_path):
    with (
        suppress(Stopped),
        run_directory(tmp_path / "run", {"a": 1, "machine": {"threads": 2}}, resume=False) as folder,
    ):
        (folder / "checkpoint-1").touch()
        raise Stopped
    says = "another machine: threads was 2, is 4; the last bits of the result differ"
    with (
        pytest.warns(TlkitWarning, match=says),
        run_directory(tmp_path / "run", {"a": 1, "machine": {"threads": 4}}, resume=True) as folder,
    ):
        assert (folder / "checkpoint-1").exists()


@pytest.mark.parametrize("name", ["photo.jpg", "notes/today.txt", "frozen/photo.jpg"])
@pytest.mark.parametrize("begun", [True, False])
def test_files_of_others_are_not_lost(tmp_path, name, begun):
    stranger = folder_of(tmp_path / "run") / name
    stranger.parent.mkdir(parents=True)
    stranger.touch()
    if begun:
        (folder_of(tmp_path / "run") / "identity.json").touch()
    with pytest.raises(UsageError, match=rf"it holds files that tlkit did not write, .*: {name}; move them away"):
        run_directory(tmp_path / "run", {}, resume=False).__enter__()
    assert stranger.exists()


def test_a_file_of_somebody_else_stays_at_the_end(tmp_path):
    with run_directory(tmp_path / "run", {}, resume=False) as folder:
        (folder / "log.jsonl").touch()
        (folder / "photo.jpg").touch()
    assert (folder / "photo.jpg").exists()
    (folder / "photo.jpg").unlink()
    with run_directory(tmp_path / "run", {}, resume=False):
        (folder / ".0001.npy.1-2.abcdefgh.part").touch()
        (folder / "frozen/golden").mkdir(parents=True)
        (folder / "frozen/bundle.json").touch()
        (folder / "frozen/golden/0.png").touch()
    assert not folder.exists()


def test_what_a_run_left_that_was_killed_at_its_very_end_goes(tmp_path):
    out, folder = tmp_path / "run", folder_of(tmp_path / "run")
    folder.mkdir()
    for name in ("identity.json", "checkpoint-1"):
        (folder / name).touch()
    discard_finished(out)
    assert is_unfinished(out)
    out.mkdir()
    (out / "bundle.json").touch()
    discard_finished(out)
    assert not folder.exists()
