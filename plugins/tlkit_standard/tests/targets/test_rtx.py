"""Real TensorRT-RTX engines, built from our own graphs on a machine without a GPU."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx
import pytest
from onnx import TensorProto, helper
from tlkit_standard.targets import _nvidia, _watch
from tlkit_standard.targets.tensorrt_rtx import TensorRTRTX

from tests.kit.exporting import built
from tests.kit.fake_cuda import needs_rtx
from tlkit import cli
from tlkit.errors import ArtifactError, ResourceError, UsageError
from tlkit.graph.metadata import build_source
from tlkit.model.exports import open_export
from tlkit.plugin.contract import OptimizationProfile, Session, silent
from tlkit.runtime import cuda
from tlkit.runtime.engine import open_target


def gpu_here():
    try:
        return bool(cuda.gpu())
    except ResourceError:
        return False


no_gpu = pytest.mark.skipif(gpu_here(), reason="is about machines without a GPU")


@needs_rtx
class TestRTX:
    @pytest.mark.parametrize("graph", ["trunk", "head", "model"])
    def test_every_graph_builds(self, tiny_run, tmp_path, graph):
        out = tmp_path / f"{graph}.engine"
        TensorRTRTX().build(build_source(tiny_run / f"onnx/fp32/{graph}.onnx"), out, OptimizationProfile(), silent)
        assert out.stat().st_size > 1000

    def test_for_chosen_gpus(self, tiny_run, tmp_path):
        out = tmp_path / "trunk.engine"
        replace(TensorRTRTX(), gpu="sm86, SM120").build(
            build_source(tiny_run / "onnx/fp32/trunk.onnx"), out, OptimizationProfile(), silent
        )
        assert out.stat().st_size > 1000

    def test_the_verb_takes_batch_sizes(self, own_run, tlkit):
        done = tlkit("export", own_run, "--tensorrt-rtx", "--profile", "1,3,5", "--gpu", "sm86,sm120")
        assert done.code == 0, done.err
        record = json.loads((own_run / "tensorrt-rtx/fp32/manifest.json").read_text())
        assert record["profile"] == {"min": 1, "opt": 3, "max": 5}
        assert record["options"]["gpu"] == "sm86,sm120"
        assert tlkit("export", own_run, "--tensorrt-rtx", "--profile", "3,1,5").code == 2

    def test_an_unknown_gpu_names_those_there_are(self, tiny_run, tmp_path):
        with pytest.raises(UsageError, match=r"knows no GPU 'sm1'.*sm120, .*sm86"):
            replace(TensorRTRTX(), gpu="sm86,sm1").build(
                build_source(tiny_run / "onnx/fp32/trunk.onnx"), tmp_path / "x.engine", OptimizationProfile(), silent
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
        with pytest.raises(ArtifactError, match=r"g\.onnx: tensorrt-rtx refuses it: NonZero 'odd'"):
            TensorRTRTX().build(build_source(tmp_path / "g.onnx"), tmp_path / "g.engine", OptimizationProfile(), silent)
        assert not (tmp_path / "g.engine").exists()

    @pytest.mark.parametrize("target", ["onnx", "tensorrt"])
    def test_gpus_are_chosen_for_targets_that_can_build_for_them(self, own_run, capsys, target):
        assert cli.run(["export", str(own_run), f"--{target}", "--gpu", "sm86"]) == 2
        assert "option target.gpu: no such option" in capsys.readouterr().err

    def test_a_build_says_how_far_it_is(self, tiny_run, tmp_path):
        bars = {}

        def progress(what, total):
            bars[what] = [total, 0, []]

            def tick(more, said=""):
                bars[what][1] += more
                bars[what][2].append(said)

            return tick

        TensorRTRTX().build(
            build_source(tiny_run / "onnx/fp32/model.onnx"), tmp_path / "x.engine", OptimizationProfile(), progress
        )
        ((what, (total, done, said)),) = bars.items()
        assert what == "tensorrt-rtx model: building engine"
        assert 0 < done <= total
        assert any(re.fullmatch(r"Optimizing graph \d+/\d+", each) for each in said)

    def test_ctrl_c_stops_a_build_and_leaves_nothing(self, own_run, monkeypatch, request):
        """The signal comes in the middle of the build, as the monitor's first step is done, and takes effect there."""
        seen, monitors = [], []
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
        request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

        def progress(_what, _total):
            def tick(_more, said=""):
                if not seen:
                    os.kill(os.getpid(), signal.SIGINT)
                seen.append(said)
                while not monitors[0].stopped:
                    time.sleep(0.001)

            return tick

        def watch(*args):
            monitors.append(_watch.watch(*args))
            return monitors[-1]

        log = _nvidia._log(importlib.import_module("tensorrt_rtx"))
        monkeypatch.setattr(_nvidia, "_log", lambda _: log)
        monkeypatch.setattr(_nvidia, "watch", watch)
        with pytest.raises(KeyboardInterrupt):
            built(own_run, TensorRTRTX(), progress=progress)
        assert seen
        assert "anceled by user" in (log.worst or "canceled by user")  # not every build comes to say it
        assert not list((own_run / "tensorrt-rtx").iterdir())

    def test_a_full_disk_is_told_of_by_the_files_own_name_and_nothing_stays(self, own_run, tlkit):
        before = sorted(own_run.rglob("*"))
        done = tlkit("export", own_run, "--tensorrt-rtx", largest_file=5000)
        assert (done.code, done.out) == (5, "")
        assert f"{own_run}/tensorrt-rtx/fp32/trunk.engine: can't write: file too large" in done.err
        assert done.err.count("\n") == 1
        assert [path for path in sorted(own_run.rglob("*")) if path.name != "tensorrt-rtx"] == before

    def test_a_graph_that_was_changed_after_export_is_not_built_from(self, own_run):
        (own_run / "onnx/fp32/model.onnx").write_bytes(b"other")
        with pytest.raises(ArtifactError, match=r"model is missing or was changed after export; run: tlkit export"):
            built(own_run, TensorRTRTX())
        assert not (own_run / "tensorrt-rtx").exists()

    def test_batches_must_rise(self, tiny_run, tmp_path):
        with pytest.raises(UsageError, match="must rise"):
            TensorRTRTX().build(
                build_source(tiny_run / "onnx/fp32/trunk.onnx"),
                tmp_path / "x.engine",
                OptimizationProfile(4, 2, 8),
                silent,
            )

    @no_gpu
    def test_a_bundle_is_built_and_says_that_it_is_unproven(self, own_run):
        written = built(own_run, TensorRTRTX())
        assert written.folder == own_run / "tensorrt-rtx/fp32"
        assert "no NVIDIA GPU" in str(written.unproven)
        record = json.loads((written.folder / "manifest.json").read_text())
        assert record["machine"] == TensorRTRTX().machine()
        assert json.loads(record["metadata"]["model"]["tlkit.labels"]) == ["dark", "light", "middle"]
        names = sorted(file.name for file in written.folder.iterdir())
        assert names == ["head.engine", "manifest.json", "model.engine", "trunk.engine"]


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
        place = built(own_run, Engine()).folder
        monkeypatch.setattr(Engine, "opens", True)
        return place / "model.engine"

    def test_what_was_built_here_opens_and_knows_its_labels(self, file):
        session = open_target(Engine(), open_export(file.parent))
        assert json.loads(session.metadata["tlkit.labels"]) == ["dark", "light", "middle"]

    def test_a_strangers_engine_is_not_opened_unless_trusted(self, file, monkeypatch, tmp_path):
        monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "of another machine"))
        with pytest.raises(ArtifactError, match=r"executable code.* --tensorrt-rtx; or, .* --trust-engine"):
            open_target(Engine(), open_export(file.parent))
        assert open_target(Engine(), open_export(file.parent), trust=True).metadata

    def test_another_driver_will_do(self, file, monkeypatch):
        record = json.loads((file.parent / "manifest.json").read_text())
        record["machine"]["driver"] = "570.1"
        (file.parent / "manifest.json").write_text(json.dumps(record))
        assert open_target(Engine(), open_export(file.parent)).metadata

    def test_verify_and_bench_pass_over_what_was_built_elsewhere(self, own_run, tlkit, monkeypatch, tmp_path):
        built(own_run, TensorRTRTX())
        env = {"TLKIT_CACHE": str(tmp_path / "of another machine")}
        done = tlkit("verify", own_run, env=env)
        assert done.code == 0, done.err
        assert "tensorrt-rtx/fp32: skipped here: a file of tensorrt-rtx is executable code" in done.out
        assert tlkit("verify", own_run, "--target", "tensorrt-rtx", env=env).code == 4
        done = tlkit("bench", own_run, "--batch-size", "1", env=env)
        assert done.code == 0, done.err
        assert "skipped tensorrt-rtx/fp32: a file of tensorrt-rtx is executable code" in done.err
        assert tlkit("bench", own_run, "--target", "tensorrt-rtx", env=env).code == 4

    @pytest.mark.parametrize("verb", ["verify", "bench"])
    def test_what_no_plugin_here_was_built_by_is_passed_over(self, own_run, capsys, verb):
        built(own_run, TensorRTRTX())
        (own_run / "tensorrt-rtx").rename(own_run / "strange")
        manifest = own_run / "strange/fp32/manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"target": "strange"}))
        options = ["--batch-size", "1"] if verb == "bench" else []
        assert cli.run([verb, str(own_run), *options]) == 0
        assert "strange/fp32: " in "".join(capsys.readouterr())
        assert cli.run([verb, str(own_run), "--target", "strange"]) == 4
        assert "there is no target 'strange'; installed: " in capsys.readouterr().err

    def test_an_engine_for_another_gpu_is_refused_with_the_command(self, file, monkeypatch):
        monkeypatch.setattr(Engine, "version", "2.0")
        with pytest.raises(ArtifactError, match=r"for GPU GeForce 1.0, and this machine has GeForce 2.0; run: tlkit e"):
            open_target(Engine(), open_export(file.parent))

    @no_gpu
    def test_without_a_gpu_it_says_so_and_verify_names_it(self, own_run, tlkit):
        built(own_run, TensorRTRTX())
        with pytest.raises(ResourceError, match="no NVIDIA GPU that can be used here"):
            TensorRTRTX().open(own_run / "tensorrt-rtx/fp32/model.engine")
        done = tlkit("verify", own_run, "--target", "tensorrt-rtx")
        assert (done.code, done.out) == (5, "")
        assert "no NVIDIA GPU" in done.err
