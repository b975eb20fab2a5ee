"""Real TensorRT-RTX engines, built from our own graphs on a machine without a GPU."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto, helper
from tlkit_standard.targets import _nvidia
from tlkit_standard.targets.tensorrt import TensorRT
from tlkit_standard.targets.tensorrt_rtx import TensorRTRTX

from tlkit.deploy.publish import publish_target
from tlkit.errors import ArtefactError, ResourceError, UsageError
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import Shapes

needs_rtx = pytest.mark.skipif(
    TensorRTRTX().missing() is not None, reason="needs tensorrt-rtx: pip install 'tlkit[tensorrt-rtx]'"
)


@needs_rtx
class TestRTX:
    @pytest.mark.parametrize("graph", ["trunk", "head", "model"])
    def test_every_graph_builds(self, tiny_run, tmp_path, graph):
        out = tmp_path / f"{graph}.engine"
        TensorRTRTX().build(tiny_run / f"onnx/fp32/{graph}.onnx", out, Shapes())
        assert out.stat().st_size > 1000

    def test_for_chosen_gpus(self, tiny_run, tmp_path):
        out = tmp_path / "trunk.engine"
        replace(TensorRTRTX(), gpu="sm86, SM120").build(tiny_run / "onnx/fp32/trunk.onnx", out, Shapes())
        assert out.stat().st_size > 1000

    def test_an_unknown_gpu_names_those_there_are(self, tiny_run, tmp_path):
        with pytest.raises(UsageError, match=r"knows no GPU 'sm1'.*sm120, .*sm86"):
            replace(TensorRTRTX(), gpu="sm86,sm1").build(
                tiny_run / "onnx/fp32/trunk.onnx", tmp_path / "x.engine", Shapes()
            )

    def test_a_graph_the_parser_refuses_names_its_node(self, tmp_path):
        node = helper.make_node("NonZero", ["features"], ["y"], name="odd")
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3])],
            [helper.make_tensor_value_info("y", TensorProto.INT64, [2, "k"])],
        )
        opsets = [helper.make_opsetid("", 20)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "g.onnx")
        with pytest.raises(ArtefactError, match=r"g\.onnx: tensorrt-rtx refuses it: NonZero 'odd'"):
            TensorRTRTX().build(tmp_path / "g.onnx", tmp_path / "g.engine", Shapes())
        assert not (tmp_path / "g.engine").exists()

    def test_batches_must_rise(self, tiny_run, tmp_path):
        with pytest.raises(UsageError, match="must rise"):
            TensorRTRTX().build(tiny_run / "onnx/fp32/trunk.onnx", tmp_path / "x.engine", Shapes(4, 2, 8))

    def test_a_bundle_is_published_and_says_that_it_is_unproven(self, own_run):
        published = publish_target(open_bundle(own_run), TensorRTRTX())
        assert published.place == own_run / "tensorrt-rtx/fp32"
        assert "does not run them" in str(published.unproven)
        names = sorted(file.name for file in published.place.iterdir())
        assert names == ["built.json", "head.engine", "model.engine", "trunk.engine"]


def test_a_missing_builder_names_the_command(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(_nvidia.importlib.util, "find_spec", lambda _: None)
    for target, package in ((TensorRT(), "tensorrt"), (TensorRTRTX(), "tensorrt-rtx-cu13")):
        assert f'pip install "{package}"' in str(target.missing())
        with pytest.raises(ResourceError, match=package):
            target.build(tiny_run / "onnx/fp32/trunk.onnx", tmp_path / "x.engine", Shapes())
        with pytest.raises(ResourceError, match="can't be built here"):
            publish_target(open_bundle(tiny_run), target)


def test_a_library_that_does_not_load_is_told_apart_from_a_missing_one(monkeypatch):
    def broken(_name):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(_nvidia.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(_nvidia.importlib, "import_module", broken)
    assert "can't be loaded (libnvinfer.so.10" in str(TensorRT().missing())
