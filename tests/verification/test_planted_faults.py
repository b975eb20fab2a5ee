"""Each fault that deployment can bring in is planted, and `verify` has to find it; without one it finds nothing."""

from __future__ import annotations

import json
import shutil

import onnx
import pytest
from onnx import helper

from tests.kit.exporting import replayed, replayed_alone
from tests.kit.faults import FAULTS, OF_NOVELTY, Drops, caught, facts, planted
from tests.kit.tiny import resign
from tlkit import cli
from tlkit.errors import ArtifactError

PRECISIONS = ("fp32", "fp16", "int8")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", [*FAULTS, *OF_NOVELTY])
def test_a_planted_fault_is_caught(novel_run, tmp_path, fault, precision):
    run = tmp_path / "run"
    shutil.copytree(novel_run, run)
    file = run / "onnx" / precision / "model.onnx"
    assert planted(fault, file)
    with pytest.raises(ArtifactError, match="changed after export"):  # the hash says so at once
        replayed(run, precision)
    resign(run, "model.onnx", precision)  # and where it is no help, the images do
    result = replayed(run, precision)
    assert not result.passed
    assert not replayed_alone(run, file).passed
    assert result.verdicts["trunk"].passed
    assert result.verdicts["head"].passed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_dropped_last_batch_is_caught(novel_run, precision):
    assert caught(lambda: replayed(novel_run, precision, session=Drops))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_a_fault_there_is_no_alarm(novel_run, precision):
    result = replayed(novel_run, precision)
    assert (result.passed, result.problems, result.changed_images) == (True, (), ())


class TestAgainst:
    """One graph, wherever it lies, against its bundle; as commands, in this process."""

    @pytest.fixture
    def place(self, novel_run, tmp_path, monkeypatch):
        shutil.copytree(novel_run, tmp_path / "run")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("name", ["trunk.onnx", "head.onnx", "model.onnx"])
    def test_what_was_exported_passes(self, place, capsys, precision, name):
        shutil.copy(place / "run/onnx" / precision / name, place / "deployed.onnx")
        assert cli.run(["verify", "deployed.onnx", "--against", "run"]) == 0
        assert capsys.readouterr().out.splitlines()[0] == "deployed.onnx: 4 golden images, pixels identical"

    @pytest.mark.parametrize("fault", ["swapped channels", "another crop", "swapped labels"])
    def test_what_was_changed_fails(self, place, capsys, fault):
        graph = onnx.load(place / "run/onnx/fp32/model.onnx")
        FAULTS[fault](graph)
        onnx.save(graph, place / "deployed.onnx")
        assert cli.run(["verify", "deployed.onnx", "--against", "run", "--json"]) == 6
        out, err = capsys.readouterr()
        assert json.loads(out)["passed"] is False
        assert err == ("tlkit: deployed.onnx: it does not give what was trained in run; run: tlkit export run --onnx\n")

    def test_another_bundles_graph_fails(self, place, pictures, tiny_config, capsys):
        from dataclasses import replace

        from tlkit.training.run import train

        train(pictures, place / "other", replace(tiny_config, cut="third"))
        assert cli.run(["verify", "run/onnx/fp32/head.onnx", "--against", "other"]) != 0
        graph = onnx.load(place / "run/onnx/fp32/model.onnx")
        helper.set_model_props(graph, {**facts(graph), "tlkit.bundle": "0" * 64})
        onnx.save(graph, place / "deployed.onnx")
        assert cli.run(["verify", "deployed.onnx", "--against", "run"]) == 6
        assert "its metadata name another bundle" in capsys.readouterr().out

    def test_a_graph_alone_is_asked_for_its_bundle(self, place, capsys):
        assert cli.run(["verify", "run/onnx/fp32/model.onnx"]) == 2
        assert "--against" in capsys.readouterr().err

    def test_a_by_product_can_be_named(self, place):
        assert cli.run(["verify", "run/onnx/int8", "--against", "run"]) == 0

    def test_a_graph_without_facts_is_refused(self, place, capsys):
        graph = onnx.load(place / "run/onnx/fp32/model.onnx")
        del graph.metadata_props[:]
        onnx.save(graph, place / "deployed.onnx")
        assert cli.run(["verify", "deployed.onnx", "--against", "run"]) == 4
        assert "the metadata of the graph is invalid" in capsys.readouterr().err

    def test_a_precision_that_is_none_is_refused(self, place, capsys):
        graph = onnx.load(place / "run/onnx/fp32/model.onnx")
        helper.set_model_props(graph, {**facts(graph), "tlkit.precision": "fp7"})
        onnx.save(graph, place / "deployed.onnx")
        assert cli.run(["verify", "deployed.onnx", "--against", "run"]) == 4
        assert "'fp7'" in capsys.readouterr().err
