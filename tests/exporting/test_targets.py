"""A target that writes folders, from modules as well as from the graph, and keeps no metadata."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
import torch

from tests.kit import exporting
from tests.kit.tiny import Line, Tiny
from tlkit.errors import ArtifactError, DataError, UsageError
from tlkit.inspection import inspect
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import FEATURES, IMAGES, Target
from tlkit.runtime.engine import IncompatibleEngine, Opener
from tlkit.runtime.model import Model
from tlkit.runtime.session import OnnxSession
from tlkit.verification.run import verify, verify_file


@dataclass(frozen=True)
class Folded(Target):
    """The graph without its metadata in a folder, beside what the module gives for three examples."""

    name, suffix = "folded", ".folded"
    precisions = ("fp32", "int8")
    uses_module: bool = True

    def build(self, made, out, profile, progress):
        (out / "inner").mkdir(parents=True)
        graph = onnx.load_model(made.graph)
        del graph.metadata_props[:]
        onnx.save_model(graph, out / "inner/graph.onnx")
        if self.uses_module:
            example = made.example(3)
            with torch.inference_mode():
                outputs = made.module()(torch.from_numpy(example))
            np.savez(out / "outputs.npz", example=example, **dict(zip(made.outputs, outputs, strict=True)))

    def open(self, place):
        if not (place / "inner/graph.onnx").is_file():
            raise DataError("no such folder", file=place)
        return OnnxSession(place / "inner/graph.onnx")


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("folded") / "run")
    exporting.built(run, Folded(), modules=exporting.modules(run, Tiny(), Line()))
    return run


@pytest.fixture
def place(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run") / "folded/fp32"


OPENER = Opener(lambda _name: Folded(), by_suffix=lambda suffix: Folded() if suffix == ".folded" else None)


def test_the_modules_give_what_the_graph_gives(run):
    for graph, input_ in (("trunk", IMAGES), ("head", FEATURES), ("model", IMAGES)):
        with np.load(run / f"folded/fp32/{graph}.folded/outputs.npz") as kept:
            arrays = dict(kept)
        example = arrays.pop("example")
        session = OnnxSession(run / f"onnx/fp32/{graph}.onnx")
        assert (session.input, len(example)) == (input_, 3)
        assert set(arrays) == set(session.outputs)
        for name, array in session.run(example).items():
            assert np.allclose(array, arrays[name], atol=1e-4)


def test_int8_has_no_modules(own_run):
    exporting.exported(own_run, Tiny(), Line(), "int8")
    modules = exporting.modules(own_run, Tiny(), Line())
    with pytest.raises(UsageError, match=r"trunk\.onnx: in int8 it exists as a graph alone"):
        exporting.built(own_run, Folded(), "int8", modules)
    assert exporting.built(own_run, Folded(uses_module=False), "int8", modules).verdicts["model"].passed


def test_every_file_of_a_folder_is_in_the_manifest(run):
    manifest = json.loads((run / "folded/fp32/manifest.json").read_text())
    assert {"model.folded/outputs.npz", "model.folded/inner/graph.onnx"} <= set(manifest["files"])
    assert json.loads(manifest["metadata"]["model"]["tlkit.labels"]) == ["dark", "light", "middle"]


@pytest.mark.parametrize("path", ["", "folded/fp32", "folded/fp32/model.folded"])
def test_every_place_says_which_target_opens_it(run, pictures, path):
    session, _, target = OPENER.open_path(run / path, "model", "folded")
    assert target == "folded"
    image = pictures / "light/00.png"
    model = Model.from_session(session, run / path)
    assert model.predict(image)[0].label == "light"
    assert model.embed(image).shape == (1, 8)


def test_it_is_inspected_and_verified_like_a_graph(run):
    for path in (run / "folded/fp32", run / "folded/fp32/trunk.folded"):
        facts = inspect(path, OPENER).facts
        assert (facts["target"], facts["labels"]) == ("folded", ["dark", "light", "middle"])
    assert inspect(run, OPENER).exports == ("folded/fp32", "onnx/fp32")
    bundle = open_bundle(run)
    assert verify(bundle, OPENER).passed
    for path in (run / "folded/fp32", run / "folded/fp32/head.folded", run / "onnx/fp32/model.onnx"):
        assert verify_file(path, bundle, OPENER).passed


def test_a_changed_a_missing_and_an_added_file_are_refused(place):
    inner = place / "model.folded/inner/graph.onnx"
    content = inner.read_bytes()
    for change in (lambda: inner.write_bytes(content[:-1]), inner.unlink):
        change()
        with pytest.raises(ArtifactError, match=r"changed after export; run: tlkit export .* --folded"):
            OPENER.open_path(place)
    inner.write_bytes(content)
    (place / "model.folded/inner/more").touch()
    with pytest.raises(ArtifactError, match="holds files that were added"):
        OPENER.open_path(place)
    assert OPENER.open_path(place, "trunk") is not None


def test_a_folder_by_itself_needs_its_manifest_and_a_file_its_suffix(place, tmp_path):
    moved = shutil.move(place / "model.folded", tmp_path / "model.folded")
    with pytest.raises(ArtifactError, match="neither a graph nor a bundle"):
        OPENER.open_path(moved)
    (tmp_path / "alone.folded").touch()
    with pytest.raises(DataError):  # the target is asked
        OPENER.open_path(tmp_path / "alone.folded")
    (tmp_path / "alone.other").touch()
    assert OPENER.open_path(tmp_path / "alone.other") is None


def test_executable_files_open_where_they_were_built_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Folded, "executable", True)
    exporting.built(run, Folded(), modules=exporting.modules(run, Tiny(), Line()))
    assert OPENER.open_path(run / "folded/fp32") is not None
    (tmp_path / "alone.folded").touch()
    with pytest.raises(IncompatibleEngine, match="without a manifest"):
        OPENER.open_path(tmp_path / "alone.folded")
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "of another machine"))
    with pytest.raises(
        IncompatibleEngine, match=r"executable code.* if you trust it, verify it once with --trust-engine"
    ):
        OPENER.open_path(run / "folded/fp32")
    assert replace(OPENER, trust=True).open_path(run / "folded/fp32") is not None
    assert OPENER.open_path(run / "folded/fp32") is not None  # by now it is trusted


def test_options_of_another_version_of_the_plugin_are_no_reason_to_fail_late(own_run, monkeypatch):
    monkeypatch.setattr(Folded, "machine", lambda _self: {"processor": "this one"})
    place = exporting.built(own_run, Folded(), modules=exporting.modules(own_run, Tiny(), Line())).folder
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps({**manifest, "options": {"renamed": 3}}))
    with pytest.raises(IncompatibleEngine, match=r"renamed: no such option.*; run: tlkit export .* --folded"):
        OPENER.open_path(place)


def test_a_target_that_writes_nothing_is_named(own_run):
    class Idle(Folded):
        def build(self, made, out, profile, progress):
            pass

    with pytest.raises(ArtifactError, match=r"trunk\.folded: target folded wrote nothing"):
        exporting.built(own_run, Idle())
