"""Real TensorRT-RTX engines, built from our own graphs on a machine without a GPU."""

from __future__ import annotations

import ast
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import onnx
import pytest
from onnx import TensorProto, helper
from tlkit_standard.targets import _cuda, _engine, _nvidia, tensorrt
from tlkit_standard.targets.tensorrt import TensorRT
from tlkit_standard.targets.tensorrt_rtx import TensorRTRTX

from tlkit.deploy.opening import open_target
from tlkit.deploy.publish import publish_target
from tlkit.errors import ArtefactError, ResourceError, UsageError
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import Session, Shapes

needs_rtx = pytest.mark.skipif(
    TensorRTRTX().missing() is not None, reason="needs tensorrt-rtx: pip install 'tlkit[tensorrt-rtx]'"
)


def gpu_here():
    try:
        return bool(_cuda.gpu())
    except ResourceError:
        return False


no_gpu = pytest.mark.skipif(gpu_here(), reason="is about machines without a GPU")


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

    def test_the_verb_takes_batch_sizes(self, own_run, tlkit):
        done = tlkit("export", own_run, "--tensorrt-rtx", "--batch", "1,3,5", "--set", "target.gpu=sm86")
        assert done.code == 0, done.err
        record = json.loads((own_run / "tensorrt-rtx/fp32/built.json").read_text())
        assert record["shapes"] == {"smallest": 1, "typical": 3, "largest": 5}
        assert record["options"]["gpu"] == "sm86"
        assert tlkit("export", own_run, "--tensorrt-rtx", "--batch", "3,1,5").code == 2

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

    @no_gpu
    def test_a_bundle_is_published_and_says_that_it_is_unproven(self, own_run):
        published = publish_target(open_bundle(own_run), TensorRTRTX())
        assert published.place == own_run / "tensorrt-rtx/fp32"
        assert "no NVIDIA GPU" in str(published.unproven)
        record = json.loads((published.place / "built.json").read_text())
        assert record["machine"] == TensorRTRTX().machine()
        assert json.loads(record["metadata"]["model"]["tlkit.labels"]) == ["dark", "light", "middle"]
        names = sorted(file.name for file in published.place.iterdir())
        assert names == ["built.json", "head.engine", "model.engine", "trunk.engine"]


class Kept(Session):
    """A session of a format that keeps no metadata."""

    input, outputs = "images", ("features",)
    metadata: ClassVar[dict[str, str]] = {}

    def run(self, array, outputs=None):
        raise NotImplementedError


@dataclass(frozen=True)
class Engine(TensorRTRTX):
    """Real engines, not run; `opens` says whether there is something to open them."""

    version: ClassVar[str] = "1.0"
    opens: ClassVar[bool] = False

    def machine(self):
        return {"GPU": f"GeForce {self.version}"}

    def open(self, file):
        if not self.opens:
            raise ResourceError("no GPU")
        return Kept()


@needs_rtx
class TestOpening:
    @pytest.fixture
    def file(self, own_run, monkeypatch):
        place = publish_target(open_bundle(own_run), Engine()).place
        monkeypatch.setattr(Engine, "opens", True)
        return place / "model.engine"

    def test_what_was_built_here_opens_and_knows_its_labels(self, file):
        session = open_target(Engine(), file)
        assert json.loads(session.metadata["tlkit.labels"]) == ["dark", "light", "middle"]

    def test_a_strangers_engine_is_not_opened_unless_trusted(self, file, monkeypatch, tmp_path):
        monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "of another machine"))
        with pytest.raises(ArtefactError, match=r"executable code.* --tensorrt-rtx; or, .* --trust-engine"):
            open_target(Engine(), file)
        assert open_target(Engine(), file, trust=True).metadata

    def test_an_engine_for_another_gpu_is_refused_with_the_command(self, file, monkeypatch):
        monkeypatch.setattr(Engine, "version", "2.0")
        with pytest.raises(ArtefactError, match=r"for GPU GeForce 1.0, and here is GeForce 2.0; run: tlkit e"):
            open_target(Engine(), file)

    @no_gpu
    def test_without_a_gpu_it_says_so_and_verify_names_it(self, own_run, tlkit):
        publish_target(open_bundle(own_run), TensorRTRTX())
        with pytest.raises(ResourceError, match="no NVIDIA GPU that can be used here"):
            TensorRTRTX().open(own_run / "tensorrt-rtx/fp32/model.engine")
        done = tlkit("verify", own_run, "--target", "tensorrt-rtx")
        assert (done.code, done.out) == (5, "")
        assert "no NVIDIA GPU" in done.err


def attributes(file):
    """The names `x.y` that a module's code uses of a variable called x."""
    tree = ast.parse(Path(file).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return {(node.value.id, node.attr) for node in found}


class TestBindings:
    """What can't be run without a GPU uses only what NVIDIA's bindings really have."""

    @needs_rtx
    def test_of_tensorrt(self):
        import tensorrt_rtx as trt

        kinds = {"trt": trt, "engine": trt.ICudaEngine, "loader": trt.Runtime, "builder": trt.Builder}
        kinds |= {"config": trt.IBuilderConfig, "parser": trt.OnnxParser, "profile": trt.IOptimizationProfile}
        used = {
            each for module in (_engine, _nvidia, tensorrt) for each in attributes(module.__file__) if each[0] in kinds
        }
        assert len(used) > 15
        assert [f"{owner}.{name}" for owner, name in sorted(used) if not hasattr(kinds[owner], name)] == []
        text = Path(_engine.__file__).read_text()
        calls = set(re.findall(r"self\._context\.(\w+)", text))
        assert calls >= {"set_input_shape", "set_tensor_address", "execute_async_v3"}
        assert all(hasattr(trt.IExecutionContext, call) for call in calls)

    def test_of_cuda(self):
        cuda = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
        used = {name for owner, name in attributes(_cuda.__file__) | attributes(_engine.__file__) if owner == "cuda"}
        used |= set(re.findall(r"self\._cuda\.(\w+)", Path(_cuda.__file__).read_text()))
        assert len(used) > 8
        assert [name for name in sorted(used) if not hasattr(cuda, name)] == []

    def test_without_its_bindings_the_command_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
        with pytest.raises(ResourceError, match='run: pip install "cuda-bindings"'):
            _cuda.gpu()


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
