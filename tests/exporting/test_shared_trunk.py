"""Several heads on one trunk: each gives what it gives alone, and the trunk stays one file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.kit.exporting import exported
from tests.kit.tiny import write_images
from tlkit import cli
from tlkit.errors import ArtifactError, GateError, UsageError
from tlkit.exporting import shared_trunk
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES
from tlkit.runtime.model import Model
from tlkit.runtime.session import OnnxSession
from tlkit.training.run import train


@pytest.fixture(scope="module")
def runs(tiny_config, pictures, tmp_path_factory):
    """Bundles with one trunk and classes of their own: shades, sides, and shades once more from another cut."""
    root = tmp_path_factory.mktemp("runs")
    sides = write_images(root / "photos", classes=("left", "right"))
    made = {"shades": (pictures, tiny_config), "sides": (sides, tiny_config)}
    made["deeper"] = (pictures, replace(tiny_config, cut="third"))
    for name, (photos, config) in made.items():
        train(photos, root / name, config)
        exported(root / name, config.backbone, config.head)
    return root


def opened(runs, *names):
    return [open_bundle(runs / name) for name in names]


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_every_head_gives_what_it_gives_alone(runs, tmp_path, images):
    made = shared_trunk.export_shared_trunk(opened(runs, "shades", "sides"), tmp_path / "multi")
    assert {name: verdict.passed for name, verdict in made.verdicts.items()} == {"shades": True, "sides": True}
    got = OnnxSession(tmp_path / "multi/model.onnx").run(images)
    assert list(got) == [
        FEATURES,
        *("shades/logits", "shades/probabilities"),
        *("sides/logits", "sides/probabilities"),
    ]
    for name in ("shades", "sides"):
        alone = OnnxSession(runs / name / "onnx/fp32/model.onnx").run(images)
        for tensor in (LOGITS, PROBABILITIES):
            assert np.allclose(got[f"{name}/{tensor}"], alone[tensor], atol=1e-5)


def test_the_trunk_is_there_once(runs, tmp_path):
    shared_trunk.export_shared_trunk(opened(runs, "shades", "sides"), tmp_path / "multi")
    weights = [t for t in onnx.load(tmp_path / "multi/model.onnx").graph.initializer if len(t.dims) == 4]
    assert len(weights) == 2


def test_another_head_leaves_the_file_of_the_trunk_as_it_is(runs, tmp_path):
    shared_trunk.export_shared_trunk(opened(runs, "shades"), tmp_path / "multi")
    before = (tmp_path / "multi/trunk.onnx").read_bytes()
    shared_trunk.export_shared_trunk(opened(runs, "sides", "shades"), tmp_path / "multi")
    assert (tmp_path / "multi/trunk.onnx").read_bytes() == before
    record = json.loads((tmp_path / "multi/manifest.json").read_text())
    assert set(record["heads"]) == {"shades", "sides"}
    assert set(record["files"]) == {"trunk.onnx", "model.onnx", "head-shades.onnx", "head-sides.onnx"}


def test_another_trunk_is_refused(runs, tmp_path):
    with pytest.raises(ArtifactError, match=r"deeper: its trunk is not that of .*shades: another cut, another state"):
        shared_trunk.export_shared_trunk(opened(runs, "shades", "deeper"), tmp_path / "multi")
    assert not (tmp_path / "multi").exists()


def test_a_head_that_computes_something_else_is_not_written(runs, tmp_path, monkeypatch):
    real = shared_trunk.joined

    def spoiled(*given):
        graph = real(*given)
        weight = next(t for t in graph.graph.initializer if t.name.startswith("sides/") and len(t.dims) == 2)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
        return graph

    monkeypatch.setattr(shared_trunk, "joined", spoiled)
    with pytest.raises(GateError, match="the head sides does not compute what was trained"):
        shared_trunk.export_shared_trunk(opened(runs, "shades", "sides"), tmp_path / "multi")
    assert not (tmp_path / "multi").exists()


def test_what_is_no_such_folder_is_not_replaced(runs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="it exists already"):
        shared_trunk.export_shared_trunk(opened(runs, "shades"), tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").exists()


@pytest.mark.parametrize("manifest", ['{"name": "my web app"}', '{"bundle": "x", "files": {}}'])
def test_a_folder_with_another_manifest_is_not_replaced(runs, tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UsageError, match="it exists already"):
        shared_trunk.export_shared_trunk(opened(runs, "shades"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_photo_beside_its_graphs_is_not_lost(runs, tmp_path):
    shared_trunk.export_shared_trunk(opened(runs, "shades"), tmp_path / "multi")
    (tmp_path / "multi/photo.jpg").touch()
    with pytest.raises(
        UsageError, match=r"multi: it holds files that tlkit did not write, .*photo\.jpg; move them away"
    ):
        shared_trunk.export_shared_trunk(opened(runs, "shades"), tmp_path / "multi")
    assert (tmp_path / "multi/photo.jpg").exists()


class TestCommands:
    @pytest.fixture
    def place(self, runs, tmp_path, monkeypatch):
        monkeypatch.chdir(runs)
        return tmp_path / "multi"

    def test_export_predict_and_embed(self, place, pictures, capsys):
        assert cli.run(["export", "shades", "sides", "--onnx", "--shared-trunk", "-o", str(place)]) == 0
        out, err = capsys.readouterr()
        assert [line.split(":")[0].strip() for line in out.splitlines()] == [str(place), "shades", "sides"]
        assert err.splitlines() == [f"wrote {place}", f"next: tlkit predict {place} --head shades IMAGE..."]
        for head, label in (("shades", "dark"), ("sides", "left")):
            picture = str(pictures / "dark/00.png" if head == "shades" else "photos/left/00.png")
            assert cli.run(["predict", str(place), "--head", head, picture]) == 0
            assert capsys.readouterr().out.split("\t")[1] == label
        assert Model.open(place, graph="trunk").embed([pictures / "dark/00.png"]).shape == (1, 8)

    def test_which_head_is_asked_for(self, place, pictures, capsys):
        cli.run(["export", "shades", "sides", "--onnx", "--shared-trunk", "-o", str(place)])
        capsys.readouterr()
        picture = str(pictures / "dark/00.png")
        assert cli.run(["predict", str(place), picture]) == 2
        assert "it has several heads; choose one of them with --head: shades, sides" in capsys.readouterr().err
        assert cli.run(["predict", str(place), picture, "--head", "legs"]) == 2
        assert "there is no head 'legs'; choose one of shades, sides" in capsys.readouterr().err
        assert cli.run(["predict", "shades", picture, "--head", "shades"]) == 2
        assert "it has one head" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("args", "says"),
        [
            (["shades", "sides", "--onnx"], "several bundles need --shared-trunk"),
            (["shades", "sides", "--onnx", "--shared-trunk"], "--shared-trunk needs -o"),
            (["shades", "--onnx", "-o", "multi"], "-o is for --shared-trunk"),
            (["shades", "sides", "--tensorrt", "--shared-trunk", "-o", "multi"], "--shared-trunk is for --onnx"),
            (["shades", "--onnx", "--shared-trunk", "--precision", "int8", "-o", "multi"], "--shared-trunk is for"),
            (["shades", "--onnx", "--shared-trunk", "--max-drop", "0", "-o", "multi"], "--shared-trunk is for"),
            (["shades", "--onnx", "--shared-trunk", "--profile", "1,2,3", "-o", "multi"], "--shared-trunk is for"),
        ],
    )
    def test_what_does_not_fit_together_is_refused(self, place, capsys, args, says):
        assert cli.run(["export", *args]) == 2
        assert says in capsys.readouterr().err
