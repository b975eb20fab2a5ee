"""Graphs: one trace, cut and joined without another, and compared with the modules."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch

from tests.kit.exporting import exported
from tests.kit.tiny import Tiny
from tlkit.errors import DataError, GateError, UsageError
from tlkit.graph.compose import cut_graph
from tlkit.model.bundle import open_bundle
from tlkit.model.exports import read_manifest
from tlkit.model.reference_images import parity_images, remember
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES
from tlkit.runtime.session import OnnxSession


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def shapes(values):
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


def test_the_published_graphs_have_the_names_types_and_shapes_of_the_contract(tiny_run):
    graph = onnx.load(tiny_run / "onnx/fp32/model.onnx").graph
    assert shapes(graph.input) == {"images": ["batch", 32, 32, 3]}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert shapes(graph.output) == {FEATURES: ["batch", 8], LOGITS: ["batch", 3], PROBABILITIES: ["batch", 3]}
    head = onnx.load(tiny_run / "onnx/fp32/head.onnx").graph
    assert (shapes(head.input), shapes(head.output)) == ({FEATURES: ["batch", 8]}, {LOGITS: ["batch", 3]})


@pytest.mark.parametrize("name", ["trunk", "head", "model"])
def test_a_graph_is_one_file_of_core_operators_that_tells_nothing_of_this_machine(tiny_run, name):
    file = tiny_run / f"onnx/fp32/{name}.onnx"
    graph = onnx.load(file)
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""}
    assert (graph.ir_version, [(each.domain, each.version) for each in graph.opset_import]) == (9, [("", 20)])
    assert b".py" not in file.read_bytes()
    facts = {prop.key: prop.value for prop in graph.metadata_props}
    assert json.loads(facts["tlkit.labels"]) == ["dark", "light", "middle"]
    assert facts["tlkit.bundle"] == open_bundle(tiny_run).digest


def test_the_three_graphs_agree(tiny_run, images):
    run = {name: OnnxSession(tiny_run / f"onnx/fp32/{name}.onnx").run for name in ("trunk", "head", "model")}
    whole, features = run["model"](images), run["trunk"](images)[FEATURES]
    logits = run["head"](features)[LOGITS]
    assert np.allclose(whole[FEATURES], features, atol=1e-6)
    assert np.allclose(whole[LOGITS], logits, atol=1e-5)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(whole[PROBABILITIES], softmax, atol=1e-5)


class TestWritten:
    def test_the_record_says_what_was_checked(self, tiny_run):
        record = read_manifest(tiny_run / "onnx/fp32", "")
        assert record["bundle"] == open_bundle(tiny_run).digest
        assert record["parity_images"]["count"] >= 3
        assert set(record["parity"]) == {"trunk", "head", "model"}
        assert all(verdict["passed"] for verdict in record["parity"].values())
        assert [c["batch_size"] for c in record["parity"]["model"]["comparisons"]][:3] == [1, 2, 7]

    def test_a_graph_that_computes_something_else_is_not_written(self, own_run, tiny_config, monkeypatch):
        before = (own_run / "onnx/fp32/model.onnx").read_bytes()
        real = cut_graph

        def spoiled(taps, cut):
            graph = real(taps, cut)
            weight = next(t for t in graph.graph.initializer if len(t.dims) == 4)
            weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.05, weight.name))
            return graph

        monkeypatch.setattr("tlkit.graph.compose.cut_graph", spoiled)
        with pytest.raises(GateError, match="trunk does not compute what was trained"):
            exported(own_run, tiny_config.backbone, tiny_config.head)
        assert (own_run / "onnx/fp32/model.onnx").read_bytes() == before
        assert [place.name for place in (own_run / "onnx").iterdir()] == ["fp32"]

    def test_another_plugin_of_the_same_name_is_found_out(self, own_run, tiny_config):
        class Wider(Tiny):
            def stages(self, *, pretrained):
                stages = dict(super().stages(pretrained=pretrained))
                stages["second"] = torch.nn.Sequential(torch.nn.Conv2d(6, 9, 3), torch.nn.BatchNorm2d(9))
                return stages

        from tlkit.errors import ArtifactError

        with pytest.raises(ArtifactError, match=r"shape .* not "):
            exported(own_run, Wider(), tiny_config.head)


class TestParityImages:
    def test_come_from_the_folder_that_was_trained_on(self, tiny_run, pictures):
        remember(open_bundle(tiny_run).digest, pictures)  # the same bundle may have been trained elsewhere since
        images, source = parity_images(open_bundle(tiny_run))
        assert source == "the validation split of photos"
        assert images.shape[1:] == (32, 32, 3)

    def test_or_from_another_that_is_named(self, tiny_run, pictures, tmp_path):
        import shutil

        shutil.copytree(pictures, tmp_path / "other")
        assert parity_images(open_bundle(tiny_run), tmp_path / "other")[1].endswith("other")

    def test_a_folder_that_is_named_must_be_usable(self, tiny_run, tmp_path):
        with pytest.raises(DataError):
            parity_images(open_bundle(tiny_run), tmp_path / "none")

    @pytest.mark.usefixtures("own_cache")  # in the other one the same images are remembered
    def test_or_else_are_the_golden_images(self, tiny_config, tmp_path):
        from dataclasses import replace

        from tests.kit.tiny import write_images
        from tlkit.training.run import train

        photos = write_images(tmp_path / "photos")
        train(photos, tmp_path / "run", tiny_config)
        train(photos, tmp_path / "private", replace(tiny_config, golden=0))
        photos.rename(tmp_path / "away")
        images, source = parity_images(open_bundle(tmp_path / "run"))
        assert (len(images), source) == (4, "the golden images")
        with pytest.raises(UsageError, match="--data"):
            parity_images(open_bundle(tmp_path / "private"))
