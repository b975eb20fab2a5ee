"""A stranger's ONNX file is checked before it is run."""

from __future__ import annotations

import os
import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.kit.fake_cuda import replace_cuda
from tlkit import cli, doctor
from tlkit.errors import ArtifactError, DataError, ResourceError
from tlkit.runtime import session
from tlkit.runtime.session import OnnxSession


def graph(weight: onnx.TensorProto, *extra: onnx.NodeProto, domain: str = "") -> onnx.ModelProto:
    node = helper.make_node("Add", ["x", "w"], ["y"], domain=domain)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])]
    made = helper.make_graph([node, *extra], "g", inputs, outputs, [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def inside() -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(2, np.float32), "w")


def outside(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.fixture
def file(tmp_path):
    return tmp_path / "g.onnx"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sound_graph_runs(file, workers):
    onnx.save(graph(inside()), file)
    session = OnnxSession(file, workers=workers)
    assert (session.input, session.outputs, session.workers) == ("x", ("y",), workers)
    assert session.run(np.zeros((3, 2), np.float32))["y"].tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "beside.bin"])
def test_weights_outside_are_refused(file, tmp_path, location):
    (tmp_path / "beside.bin").write_bytes(np.ones(2, np.float32).tobytes())
    file.write_bytes(graph(outside(location)).SerializeToString())
    with pytest.raises(ArtifactError, match=r"g\.onnx.*lie in other files"):
        OnnxSession(file)


def test_weights_outside_of_a_constant_inside_a_branch_are_refused_too(file):
    constant = helper.make_node("Constant", [], ["c"], value=outside("../secret"))
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2])])
    condition = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    choice = helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)
    file.write_bytes(graph(inside(), condition, choice).SerializeToString())
    with pytest.raises(ArtifactError, match="lie in other files"):
        OnnxSession(file)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04K\x01.", b"\x08\x0a"])
def test_what_is_no_graph_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(ArtifactError):
        OnnxSession(file)


def test_an_operator_nobody_knows_is_refused_without_a_word_on_stderr(file, capfd):
    made = graph(inside(), domain="strange")
    made.opset_import.add(domain="strange", version=1)
    file.write_bytes(made.SerializeToString())
    with pytest.raises(ArtifactError):
        OnnxSession(file)
    assert capfd.readouterr() == ("", "")


def test_a_half_file_is_refused(file):
    content = graph(inside()).SerializeToString()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError):
        OnnxSession(file)


def test_no_file_is_a_data_error(file):
    with pytest.raises(DataError, match="no such file"):
        OnnxSession(file)


@pytest.mark.parametrize("large", [False, True])
def test_the_file_that_was_checked_is_opened(file, monkeypatch, large):
    onnx.save(graph(inside()), file)
    opened, original = [], session._start

    def replaced(source, *rest):
        opened.append(source)
        file.unlink()
        file.write_bytes(b"another file of this name")
        return original(source, *rest)

    monkeypatch.setattr(session, "_LARGE", 0 if large else 2**30)
    monkeypatch.setattr(session, "_start", replaced)
    assert OnnxSession(file).run(np.zeros((3, 2), np.float32))["y"].tolist() == [[1, 1]] * 3
    assert isinstance(opened[0], str if large and os.path.exists("/proc/self/fd") else bytes)


class TestDevices:
    """A GPU that isn't there is said to be missing; the CPU is taken only where that is allowed."""

    @pytest.fixture
    def listed(self, monkeypatch):
        """An ONNX Runtime that lists what it can't start, as that for GPUs does on a machine without one."""
        monkeypatch.setattr(
            session.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        )

    def test_a_provider_that_is_not_built_in_names_the_command(self, tiny_run):
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime knows CUDA")
        with pytest.raises(ResourceError, match=r'no CUDAExecutionProvider; run: .*pip install "tlkit\[gpu\]"'):
            OnnxSession(tiny_run / "onnx/fp32/model.onnx", device="cuda")

    @pytest.mark.usefixtures("listed")
    def test_a_provider_that_does_not_start_is_no_silent_cpu(self, tiny_run):
        if "CUDAExecutionProvider" in onnxruntime.get_all_providers() and doctor.fault("CUDAExecutionProvider") is None:
            pytest.skip("there is a GPU")
        with pytest.raises(ResourceError, match=r"CUDAExecutionProvider does not start here.* tlkit doctor"):
            OnnxSession(tiny_run / "onnx/fp32/model.onnx", device="cuda")

    def test_the_verb_takes_the_cpu_only_if_allowed_and_says_so(self, tiny_run, pictures, capsys):
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime knows CUDA")
        command = ["predict", str(tiny_run), str(pictures / "dark"), "--device", "cuda"]
        assert cli.run(command) == 5
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert cli.run([*command, "--allow-cpu"]) == 0
        out, err = capsys.readouterr()
        assert out.count("\n") == 12
        assert err.startswith(
            "tlkit: warning: this ONNX Runtime has no CUDAExecutionProvider; the CPU is used instead\n"
        )


class TestOnTheStandIn:
    """Verbs with `--device cuda` on a stand-in for CUDA: ONNX Runtime's CPU provider, bound to its buffers."""

    @pytest.fixture
    def provider(self, monkeypatch):
        return replace_cuda(monkeypatch)[1]

    @pytest.fixture
    def quantized(self, tiny_run, tmp_path):
        """A model with a layer in int8."""
        graph = onnx.load(tiny_run / "onnx/fp32/model.onnx")
        node = next(node for node in graph.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))
        graph.graph.initializer.extend(
            [numpy_helper.from_array(np.float32(0.01), "s"), numpy_helper.from_array(np.uint8(0), "z")]
        )
        quantize = helper.make_node("QuantizeLinear", [node.input[0], "s", "z"], ["q"])
        dequantize = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"])
        index = list(graph.graph.node).index(node)
        node.input[0] = "dq"
        graph.graph.node.insert(index, dequantize)
        graph.graph.node.insert(index, quantize)
        onnx.save(graph, tmp_path / "int8.onnx")
        return tmp_path / "int8.onnx"

    def test_verbs_run_there_and_not_on_the_cpu(self, provider, tiny_run, pictures, capsys):
        assert cli.run(["verify", str(tiny_run), "--device", "cuda"]) == 0
        assert cli.run(["predict", str(tiny_run), str(pictures / "dark"), "--device", "cuda"]) == 0
        assert capsys.readouterr().err.count("warning") == 0
        assert len(provider.opened) >= 3
        assert {options[0] for (options,) in provider.opened} == {"CUDAExecutionProvider"}

    def test_a_device_that_fails_is_a_resource_and_named(self, provider, tiny_run, pictures, capsys):
        wrapped = "CudaCall(ERRTYPE) CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=vm ;"
        provider.failure = wrapped
        for command in (["verify", tiny_run], ["predict", tiny_run, pictures / "dark"], ["bench", tiny_run]):
            assert cli.run([*map(str, command), "--device", "cuda"]) == 5
            err = capsys.readouterr().err
            assert re.search(r"device cuda: CUDA failure 700.*encountered; see: tlkit doctor.*--device cpu", err), (
                command
            )

    def test_a_device_that_fails_at_the_start_is_a_resource_too(self, provider, tiny_run, monkeypatch):
        def fail(*_arguments, **_options):
            raise RuntimeError("CUDNN_STATUS_NOT_INITIALIZED")

        monkeypatch.setattr(provider, "_session", fail)
        with pytest.raises(ResourceError, match="does not start on the device cuda: CUDNN"):
            OnnxSession(tiny_run / "onnx/fp32/model.onnx", device="cuda")
        with pytest.raises(ArtifactError, match="does not start: CUDNN"):  # the CPU can't be at fault
            OnnxSession(tiny_run / "onnx/fp32/model.onnx")

    @pytest.mark.usefixtures("provider")
    def test_int8_is_refused_but_by_verify(self, quantized, pictures, capsys):
        image = str(next((pictures / "dark").iterdir()))
        for device in ("cuda", "tensorrt"):
            assert cli.run(["predict", str(quantized), image, "--device", device]) == 5
            assert re.search(rf"no int8 kernels.*{device}.*fp16.*--tensorrt.*CPU", capsys.readouterr().err)
        assert cli.run(["predict", str(quantized), image, "--device", "cuda", "--allow-cpu"]) == 0
        assert "the CPU is used instead" in capsys.readouterr().err
        with OnnxSession(quantized, device="cuda") as opened:  # as verify does
            assert opened.run(np.zeros((1, 32, 32, 3), np.uint8))
