"""Exports of a bundle: found by what is listed and valid, opened once, refused where they are stale."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.kit.exporting import export_of
from tlkit.errors import ArtifactError, DataError, UsageError
from tlkit.model import exports
from tlkit.model.bundle import open_bundle
from tlkit.model.exports import Exports, graph_file, open_export, read_manifest
from tlkit.util.resources import processor_kind


def change(file, **facts):
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


@pytest.fixture
def found(own_run):
    return Exports.of(open_bundle(own_run))


class TestFound:
    @pytest.mark.parametrize(
        "place", ["onnx/.fp32.x.part", "onnx/.fp32.x.old", "onnx/fp32-backup", "onnx/int4", ".onnx/fp32", "copy/fp32"]
    )
    def test_what_only_looks_like_an_export_is_none(self, own_run, found, place):
        shutil.copytree(own_run / "onnx/fp32", own_run / place)
        assert found.names() == [("onnx", "fp32")]

    @pytest.mark.parametrize("place", ["onnx/int8", "tensorrt/fp16"])
    def test_a_folder_without_a_manifest_is_none(self, own_run, found, place):
        (own_run / place).mkdir(parents=True)
        assert found.names() == [("onnx", "fp32")]

    def test_an_unreadable_manifest_is_an_error_and_not_passed_over(self, own_run, found):
        (own_run / "onnx/fp32/manifest.json").write_text("{")
        assert found.names() == [("onnx", "fp32")]
        with pytest.raises(ArtifactError, match=r"manifest\.json: can't be read: .*; run: tlkit export .* --onnx"):
            found.get()

    def test_nothing_for_a_name_is_refused_with_the_command(self, found):
        assert found.select() == found.select(["onnx"], ["fp32"]) == [("onnx", "fp32")]
        with pytest.raises(ArtifactError, match=r"nothing was exported from it for tensorrt yet; .* --tensorrt$"):
            found.select(["onnx", "tensorrt"])
        with pytest.raises(
            ArtifactError, match=r"nothing was exported from it for int8 yet; .* --onnx --precision int8"
        ):
            found.select(precisions=["int8"])


class TestOpened:
    def test_a_manifest_is_read_and_a_file_hashed_once(self, found, monkeypatch):
        file = found.get().file("trunk")
        monkeypatch.setattr(exports, "read_manifest", None)  # calling them would fail
        monkeypatch.setattr(exports.files, "sha256", None)
        assert found.get().file("trunk") == file

    def test_another_bundles_is_refused(self, own_run, found):
        change(own_run / "onnx/fp32/manifest.json", bundle="0" * 64)
        with pytest.raises(ArtifactError, match="exported from another bundle"):
            found.get()
        assert not found.has()

    @pytest.mark.parametrize("graph", exports.GRAPHS)
    def test_a_graph_that_is_missing_or_changed_is_refused(self, own_run, graph):
        (own_run / f"onnx/fp32/{graph}.onnx").write_bytes(b"")
        with pytest.raises(ArtifactError, match=f"{graph} is missing or was changed after export"):
            export_of(own_run).file(graph)
        (own_run / f"onnx/fp32/{graph}.onnx").unlink()
        with pytest.raises(ArtifactError, match=f"{graph} is missing or was changed after export"):
            export_of(own_run).file(graph)

    def test_more_facts_are_kept_beside_the_others(self, own_run):
        before = read_manifest(own_run / "onnx/fp32", "")
        export_of(own_run).amend({"note": 1})
        assert read_manifest(own_run / "onnx/fp32", "") == {**before, "note": 1}

    def test_a_path_may_be_a_graph_an_export_or_a_bundle(self, own_run, tmp_path):
        model = own_run / "onnx/fp32/model.onnx"
        assert {graph_file(path, "model") for path in (own_run, model.parent, model)} == {model}
        alone = open_export(shutil.copytree(model.parent, tmp_path / "alone"))
        assert (alone.name, alone.file().parent) == ("onnx/fp32", tmp_path / "alone")
        with pytest.raises(DataError, match="no such file"):
            graph_file(tmp_path / "nowhere", "model")
        with pytest.raises(ArtifactError, match="neither a graph nor a bundle"):
            graph_file(tmp_path, "model")


class TestManifest:
    def test_no_path_of_this_machine_is_in_it(self, own_run, pictures):
        text = (own_run / "onnx/fp32/manifest.json").read_text()
        assert str(pictures.parent) not in text
        assert json.loads(text)["parity_images"]["from"] == "the validation split of photos"

    def test_the_kind_of_processor_is_in_it(self, own_run):
        assert read_manifest(own_run / "onnx/fp32", "")["processor"] == processor_kind()


class TestReplaced:
    """Only what tlkit wrote itself is replaced, and nothing with files of others in it."""

    @pytest.mark.parametrize("name", ["photo.jpg", "trunk.onnx.bak", "model.onnx.data", "notes/today.txt"])
    def test_files_of_others_are_not_lost(self, own_run, name):
        folder = own_run / "onnx/fp32"
        stranger = folder / name
        stranger.parent.mkdir(exist_ok=True)
        stranger.touch()
        assert export_of(own_run).file().exists()
        with pytest.raises(UsageError, match=rf"fp32: it holds files that tlkit did not write, .*{name}; move them"):
            exports.write_export(folder, "onnx", "fp32", {"bundle": ""}, lambda _: {})
        assert stranger.exists()

    def test_a_file_that_appears_during_the_export_is_not_lost(self, own_run):
        folder = own_run / "onnx/fp32"
        with pytest.raises(UsageError, match=r"photo\.jpg"):
            exports.write_export(folder, "onnx", "fp32", {"bundle": ""}, lambda _: (folder / "photo.jpg").touch() or {})
        assert {file.name for file in folder.iterdir()} >= {"photo.jpg", "model.onnx"}
        assert not list(folder.parent.glob(".*"))

    @pytest.mark.parametrize("content", ["{", "[]", '{"bundle": 1, "files": []}', '{"files": {}}'])
    def test_an_export_with_a_damaged_manifest_can_be_written_again(self, own_run, content):
        folder = own_run / "onnx/fp32"
        (folder / "manifest.json").write_text(content)
        exports.write_export(folder, "onnx", "fp32", {"bundle": ""}, lambda _: {})
        assert [file.name for file in folder.iterdir()] == ["manifest.json"]

    def test_another_programs_manifest_is_not_ours(self, tmp_path):
        (tmp_path / "manifest.json").write_text('{"name": "my web app"}')
        with pytest.raises(UsageError, match=r"manifest\.json"):
            exports.write_export(tmp_path, "onnx", "fp32", {"bundle": ""}, lambda _: {})

    def test_a_file_in_its_place_is_not_lost(self, tmp_path):
        (tmp_path / "fp32").write_text("mine")
        with pytest.raises(UsageError, match="fp32: tlkit did not write this file"):
            exports.write_export(tmp_path / "fp32", "onnx", "fp32", {"bundle": ""}, lambda _: {})
        assert (tmp_path / "fp32").read_text() == "mine"

    def test_an_export_that_was_set_aside_is_found(self, own_run, found):
        folder = own_run / "onnx/fp32"
        folder.rename(folder.with_name(".fp32.999999999-5.abcdefgh.old"))
        assert found.get().folder == folder
        folder.rename(folder.with_name(".fp32.999999999-5.abcdefgh.old"))
        assert found.names() == [("onnx", "fp32")]
