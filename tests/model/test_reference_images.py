"""Images behind a bundle: found through this machine's cache, never through the bundle."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.kit.tiny import elsewhere
from tlkit.errors import DataError
from tlkit.model import reference_images
from tlkit.model.bundle import open_bundle


@pytest.fixture
def bundle(tiny_run):
    return elsewhere(open_bundle(tiny_run))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))


def test_the_folder_that_was_remembered_is_found_and_labelled_as_in_training(bundle, pictures):
    reference_images.remember(bundle.digest, pictures)
    place, dataset = reference_images.dataset(bundle)
    assert place == reference_images.source(bundle) == pictures
    assert dataset.labels == bundle.record.labels


def test_a_relative_folder_is_found_from_anywhere(bundle, pictures, monkeypatch, tmp_path):
    monkeypatch.chdir(pictures.parent)
    reference_images.remember(bundle.digest, type(pictures)(pictures.name))
    monkeypatch.chdir(tmp_path)
    assert reference_images.source(bundle) == pictures


def test_of_several_folders_the_last_one_that_is_still_there_is_found(bundle, pictures, tmp_path):
    for folder in (pictures, tmp_path / "copy", tmp_path / "gone"):
        reference_images.remember(bundle.digest, folder)
    assert reference_images.source(bundle) == pictures
    (tmp_path / "copy").mkdir()
    assert reference_images.source(bundle) == tmp_path / "copy"


def test_another_folder_can_be_named(bundle, pictures):
    assert reference_images.dataset(bundle, pictures)[0] == pictures


@pytest.mark.parametrize("note", ["", "[]", "{}", json.dumps({"sources": 1}), json.dumps({"sources": ["/nowhere"]})])
def test_a_folder_that_is_gone_and_a_damaged_note_ask_for_others(bundle, pictures, note, tmp_path):
    reference_images.remember(bundle.digest, pictures)
    next((tmp_path / "cache/datasets").iterdir()).write_text(note)
    with pytest.raises(DataError, match=r"run: the images that .* not on this machine any more; .*--data"):
        reference_images.dataset(bundle)


def test_a_bundle_of_another_digest_knows_no_folder(bundle, pictures):
    reference_images.remember(bundle.digest, pictures)
    assert reference_images.source(replace(bundle, digest="1" * 64)) is None
