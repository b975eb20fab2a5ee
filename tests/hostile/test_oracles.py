"""The trials of this folder can fail: each passes, and finds the fault that it was made for when that is planted."""

from __future__ import annotations

import pytest

from tests.hostile import test_caches as caches
from tests.hostile import test_kills as kills
from tests.hostile.test_caches import damaged, made  # noqa: F401 - fixtures
from tests.model import test_exports as replacing
from tests.util.test_locks import holder  # noqa: F401 - a fixture
from tests.util.test_locks import test_the_second_is_told_who_writes_it as second_is_told
from tlkit.errors import ArtifactError
from tlkit.model import exports
from tlkit.runtime import feature_cache
from tlkit.util import files, locks


class Equal(int):
    """A checksum that equals every other."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    __hash__ = int.__hash__


def test_an_export_that_is_left_aside(own_run, tmp_path, monkeypatch):
    def trial():
        (place := tmp_path / str(len(list(tmp_path.iterdir())))).mkdir()
        kills.test_an_export_is_the_one_before_or_the_new_one(own_run, place, monkeypatch, "aside")

    trial()
    for module in (exports, files, locks):
        monkeypatch.setattr(module, "sweep", lambda _: None)
    with pytest.raises((AssertionError, ArtifactError), match=r"fp32|not exported"):
        trial()


def test_a_row_that_is_not_checked(made, damaged, monkeypatch):  # noqa: F811
    def trial():
        command = "UPDATE features SET row = (SELECT row FROM features WHERE sha256 = OTHER) WHERE sha256 = SOME"
        caches.test_a_row_that_is_not_what_was_written_is_computed_again(made, damaged, command, 1)

    trial()
    monkeypatch.setattr(feature_cache, "_checksum", lambda *_: Equal(0))
    with pytest.raises(AssertionError, match="allclose"):
        trial()


def test_two_runs_on_one_output(tmp_path, holder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(locks, "flock", lambda _: True)  # without it, the trial passes among those of the locks
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        second_is_told(tmp_path, holder)


def test_a_photo_that_is_deleted(own_run, monkeypatch):
    replacing.TestReplaced().test_files_of_others_are_not_lost(own_run, "photo.jpg")
    monkeypatch.setattr(exports, "check_strangers", lambda *_: None)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        replacing.TestReplaced().test_files_of_others_are_not_lost(own_run, "photo.jpg")
