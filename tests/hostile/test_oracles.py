"""The trials of this folder can fail: each finds the fault that it was made for when it is planted again."""

from __future__ import annotations

import pytest

from tests.hostile import test_caches as caches
from tests.hostile import test_kills as kills
from tests.hostile.test_caches import damaged, made  # noqa: F401 - fixtures
from tests.util.test_locks import holder  # noqa: F401 - a fixture
from tests.util.test_locks import test_the_second_is_told_who_writes_it as second_is_told
from tlkit.model import exports
from tlkit.runtime import feature_cache
from tlkit.util import files, locks

FAILS = (Exception, pytest.fail.Exception)


def test_an_export_that_is_left_aside(own_run, tmp_path, monkeypatch):
    for module in (exports, files, locks):
        monkeypatch.setattr(module, "sweep", lambda _: None)
    with pytest.raises(FAILS):
        kills.test_an_export_is_the_one_before_or_the_new_one(own_run, tmp_path, monkeypatch, "aside")


def test_a_row_that_is_not_checked(made, damaged, monkeypatch):  # noqa: F811
    monkeypatch.setattr(feature_cache, "_checksum", lambda *_: feature_cache.math.pi)
    with pytest.raises(FAILS):
        caches.test_a_row_that_is_not_what_was_written_is_computed_again(
            made, damaged, "UPDATE features SET row = (SELECT row FROM features WHERE sha256 = OTHER)", 11
        )


def test_two_runs_on_one_output(tmp_path, holder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(locks, "flock", lambda _: True)
    with pytest.raises(FAILS):
        second_is_told(tmp_path, holder)


def test_a_photo_that_is_deleted(own_run, monkeypatch):
    from tests.model.test_exports import TestReplaced

    monkeypatch.setattr(exports, "check_strangers", lambda *_: None)
    with pytest.raises(FAILS):
        TestReplaced().test_files_of_others_are_not_lost(own_run, "photo.jpg")
