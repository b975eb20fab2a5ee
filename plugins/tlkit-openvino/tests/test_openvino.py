"""OpenVINO gives what ONNX Runtime gives, alone and from several threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tlkit_openvino import OpenVino
from tlkit_openvino.session import OpenVinoSession

from tlkit.conformance import checks
from tlkit.errors import ArtifactError
from tlkit.graph.metadata import build_source
from tlkit.plugin.contract import OptimizationProfile, silent
from tlkit.runtime.session import OnnxSession
from tlkit.verification.parity import relative_error


@pytest.mark.parametrize(("name", "check"), checks(OpenVino()))
def test_it_keeps_the_contract(name: str, check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(("name", "check"), checks(OpenVino(workers=2)))
def test_and_so_it_does_with_two_workers(name: str, check: Callable[[], None]) -> None:
    check()


def graph(file: Path, operator: str = "Relu", domain: str = "") -> Path:
    """A wide layer, in which bfloat16 would show."""
    weight = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node(operator, ["y"], ["z"], domain=domain)]
    sizes = {"x": 512, "z": 64}
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in sizes.items())
    made = helper.make_graph(nodes, "wide", [x], [z], [numpy_helper.from_array(weight, "w")])
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save_model(helper.make_model(made, opset_imports=opsets, ir_version=10), file)
    return file


@pytest.mark.parametrize(("workers", "threads"), [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1)])
def test_single_precision_is_what_it_says(tmp_path: Path, workers: int, threads: int) -> None:
    file = graph(tmp_path / "g.onnx")
    x = np.random.default_rng(1).normal(size=(7, 512)).astype(np.float32)
    expected = OnnxSession(file).run(x)["z"]
    got = OpenVinoSession(file, workers=workers, threads=threads).run(x)["z"]
    assert relative_error(expected, got) < 1e-5  # bfloat16 has an error of some 1e-3


def test_what_openvino_cannot_run_is_refused_when_it_is_built(tmp_path: Path) -> None:
    file = graph(tmp_path / "g.onnx", "Nonsense", domain="strange")
    with pytest.raises(ArtifactError, match=r"OpenVINO refuses it: .*Nonsense"):
        OpenVino().build(build_source(file), tmp_path / "out.onnx", OptimizationProfile(), silent)
    assert not (tmp_path / "out.onnx").exists()


def test_an_array_that_does_not_fit_is_refused_and_the_session_goes_on(tmp_path: Path) -> None:
    session = OpenVinoSession(graph(tmp_path / "g.onnx"))
    with pytest.raises(ArtifactError, match="OpenVINO fails at it"):
        session.run(np.zeros((2, 3), np.float32))
    assert session.run(np.zeros((2, 512), np.float32))["z"].shape == (2, 64)


def test_without_openvino_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert 'pip install "openvino' in str(OpenVino().missing())


def test_it_writes_nothing_below_the_home(tmp_path: Path) -> None:
    """OpenVINO's telemetry leaves an identity there, and sends it."""
    code = "import tlkit_openvino.session, openvino, openvino.tools.ovc; openvino.Core()"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*"))
