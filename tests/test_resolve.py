"""Resolution of what the API is given, where the tests of the verbs do not reach."""

from __future__ import annotations

import warnings

import pytest

from tlkit import defaults
from tlkit.errors import TlkitWarning, UsageError
from tlkit.model.in_place import put
from tlkit.resolve import claimed_to_train, components_to_train, image_files, several
from tlkit.training.run_directory import folder_of


def test_an_interrupted_training_says_that_it_can_be_resumed(tmp_path):
    run = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyboardInterrupt), claimed_to_train(run):
            raise KeyboardInterrupt
    folder_of(run).mkdir()
    (folder_of(run) / "checkpoint-1").touch()
    says = r"run is not finished; give the same options and --resume to continue"
    with pytest.warns(TlkitWarning, match=says), pytest.raises(KeyboardInterrupt), claimed_to_train(run):
        raise KeyboardInterrupt


def test_an_interrupted_training_says_what_is_in_place(tiny_run, tmp_path):
    run, folder = tmp_path / "run", folder_of(tmp_path / "run")
    folder.mkdir()
    put(tiny_run, run, {}, folder)
    says = r"run is the best so far: .* head, validation accuracy .*%; give the same options and --resume to improve it"
    with pytest.warns(TlkitWarning, match=says), pytest.raises(KeyboardInterrupt), claimed_to_train(run):
        raise KeyboardInterrupt
    assert folder.exists()


def test_a_bare_string_is_one_name_and_one_path(pictures):
    assert several("onnx") == ("onnx",)
    assert several(["onnx", "torch", "onnx"]) == ("onnx", "torch")
    one = min(pictures.rglob("*.png"))
    assert image_files(str(one)).files == [one]
    assert len(image_files(str(pictures)).files) == 36


def test_what_auto_decides_is_left_open():
    named = components_to_train(None, None, None, {})
    assert {kind: each.name for kind, each in named.items()} == {"backbone": defaults.DEFAULT_BACKBONE}
    assert set(components_to_train(None, None, "svm", {"head.pca": "16"})) == {"backbone", "head"}
    assert components_to_train(None, None, "svm", {"head.pca": "16"})["head"].pca == 16
    trained = components_to_train(None, defaults.FROZEN, None, {"strategy.epochs": 3})
    assert (trained["head"].name, trained["strategy"].epochs) == (defaults.DEFAULT_HEAD, 3)
    with pytest.raises(UsageError, match="auto decides on the strategy; name the strategy, or leave it out"):
        components_to_train(None, None, None, {"strategy.epochs": 3})
