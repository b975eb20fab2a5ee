"""NVIDIA's targets without a GPU: machines that an engine is for, the bindings that are there, what is missing."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tlkit_standard.targets import _engine, _nvidia, _watch, tensorrt, tensorrt_rtx
from tlkit_standard.targets.tensorrt import TensorRT
from tlkit_standard.targets.tensorrt_rtx import TensorRTRTX

from tests.kit.exporting import built
from tests.kit.fake_cuda import Cuda, needs_rtx
from tlkit import doctor
from tlkit.errors import ResourceError
from tlkit.graph.metadata import build_source
from tlkit.model.exports import open_export
from tlkit.plugin.contract import OptimizationProfile, silent
from tlkit.runtime import cuda
from tlkit.runtime.engine import IncompatibleEngine, open_target

MODULES = (_engine, _nvidia, _watch, tensorrt, tensorrt_rtx)


class TestMachines:
    """The machine that an engine was built on and for, compared with this one, for libraries and GPUs of any kind."""

    @pytest.fixture
    def here(self, monkeypatch):
        """A machine with this version of the library, this GPU and this driver."""

        def make(version="10.5.0", name="RTX A6000", capability="8.6", driver="570.1"):
            kinds = SimpleNamespace(__members__={"NONE": 0, "SM86": 1, "SM89": 2})
            library = SimpleNamespace(__version__=version, ComputeCapability=kinds)
            monkeypatch.setattr(_nvidia.NvidiaTarget, "_library", lambda _self: library)
            monkeypatch.setattr(cuda, "gpu", lambda: cuda.Gpu(name, capability))
            monkeypatch.setattr(doctor, "gpus", lambda: [doctor.Gpu(name, driver, capability, "48 GiB")])

        return make

    def test_it_says_gpu_driver_and_version(self, here):
        here()
        assert TensorRT().machine() == {
            "tensorrt": "10.5.0",
            "driver": "570.1",
            "GPU": "RTX A6000",
            "compute capability": "8.6",
        }
        assert TensorRT(hardware_compatible=True).machine() == {"tensorrt": "10.5.0", "driver": "570.1"}
        assert TensorRTRTX().machine() == {"tensorrt-rtx": "10.5.0", "driver": "570.1"}

    def test_the_same_machine_with_a_newer_driver_fits(self, here):
        here()
        built = TensorRT().machine()
        here(driver="580.2")
        assert TensorRT().incompatible(built) is None

    @pytest.mark.parametrize(
        ("built", "here_now", "fits"),
        [
            ("10.5.0", "10.5.0", True),
            ("10.5.0", "10.13.2", True),
            ("10.5.0", "10.4.9", False),
            ("8.6.1", "10.0.1", True),
            ("10.5.0", "11.4.1", True),
            ("8.6.1", "11.0.0", False),
            ("11.0.0", "10.9.0", False),
        ],
    )
    def test_later_versions_read_what_was_built_for_them(self, here, built, here_now, fits):
        here(version=built)
        compatible, plain = TensorRT(version_compatible=True), TensorRT()
        facts, plain_facts = compatible.machine(), plain.machine()
        here(version=here_now)
        assert (compatible.incompatible(facts) is None) == fits
        assert (plain.incompatible(plain_facts) is None) == (built == here_now)
        if not fits:
            assert (
                compatible.incompatible(facts) == f"it was built for tensorrt {built}, and this machine has {here_now}"
            )

    def test_a_version_compatible_engine_is_for_one_gpu_all_the_same(self, here):
        here()
        target = TensorRT(version_compatible=True)
        built = target.machine()
        here(version="10.6.0", name="RTX 4090", capability="8.9")
        assert target.incompatible(built) == "it was built for GPU RTX A6000, and this machine has RTX 4090"

    def test_rtx_engines_are_for_the_gpus_that_were_named(self, here):
        here(version="1.2")
        built = TensorRTRTX().machine()
        assert TensorRTRTX().incompatible(built) is None
        assert TensorRTRTX(gpu="sm89, SM86").incompatible(built) is None
        assert (
            TensorRTRTX(gpu="sm89").incompatible(built)
            == "it was built for sm89, and this machine has sm86 (RTX A6000)"
        )
        here(version="1.3")
        assert (
            TensorRTRTX(gpu="sm89").incompatible(built) == "it was built for tensorrt-rtx 1.2, and this machine has 1.3"
        )

    def test_rtx_says_which_gpu_it_has_no_kernels_for(self, here):
        here(version="1.2", name="H100", capability="9.0")
        why = TensorRTRTX().incompatible(TensorRTRTX().machine())
        assert why.startswith("tensorrt-rtx has no kernels for sm90 (H100), only for sm")

    def test_an_export_for_other_gpus_is_unproven_and_opened_nowhere_else(self, own_run, monkeypatch):
        pytest.importorskip("tensorrt_rtx")
        monkeypatch.setattr(cuda, "gpu", lambda: cuda.Gpu("RTX A6000", "8.6"))
        written = built(own_run, TensorRTRTX(gpu="sm120"))
        assert written.unproven == "it was built for sm120, and this machine has sm86 (RTX A6000)"
        with pytest.raises(
            IncompatibleEngine, match=r"for sm120, and this machine has sm86 .*; run: tlkit export .* --tensorrt-rtx$"
        ):
            open_target(TensorRTRTX(), open_export(written.folder))


def attributes(file):
    """The names `x.y` that a module's code uses of a variable called x."""
    tree = ast.parse(Path(file).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return {(node.value.id, node.attr) for node in found}


class TestBindings:
    """Code that can't run without a GPU uses only what NVIDIA's bindings really have."""

    @needs_rtx
    def test_of_tensorrt(self):
        import tensorrt_rtx as trt

        kinds = {"trt": trt, "engine": trt.ICudaEngine, "loader": trt.Runtime, "builder": trt.Builder}
        kinds |= {"config": trt.IBuilderConfig, "parser": trt.OnnxParser, "profile": trt.IOptimizationProfile}
        used = {each for module in MODULES for each in attributes(module.__file__) if each[0] in kinds}
        assert len(used) > 15
        assert [f"{owner}.{name}" for owner, name in sorted(used) if not hasattr(kinds[owner], name)] == []
        text = Path(_engine.__file__).read_text()
        calls = set(re.findall(r"\bcontext\.(\w+)", text))
        assert calls == {"set_input_shape", "set_tensor_address", "execute_async_v3"}
        assert all(hasattr(trt.IExecutionContext, call) for call in calls)

    def test_of_cuda(self):
        bindings = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
        used = {name for owner, name in attributes(cuda.__file__) if owner == "cuda"}
        used |= set(re.findall(r"self\._cuda\.(\w+)", Path(cuda.__file__).read_text()))
        assert len(used) > 20
        assert [name for name in sorted(used) if not hasattr(bindings, name)] == []
        assert [name for name in sorted(used) if not hasattr(Cuda, name)] == []  # the stand-in knows them all

    def test_without_its_bindings_the_command_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
        with pytest.raises(ResourceError, match='run: pip install "cuda-bindings"'):
            cuda.gpu()


def test_a_missing_builder_names_the_command(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(_nvidia.importlib.util, "find_spec", lambda _: None)
    for target, package in ((TensorRT(), "tensorrt"), (TensorRTRTX(), "tensorrt-rtx-cu13")):
        assert f'pip install "{package}"' in str(target.missing())
        with pytest.raises(ResourceError, match=package):
            target.build(
                build_source(tiny_run / "onnx/fp32/trunk.onnx"), tmp_path / "x.engine", OptimizationProfile(), silent
            )
        with pytest.raises(ResourceError, match="can't be built here"):
            built(tiny_run, target)


def test_a_library_that_does_not_load_is_told_apart_from_a_missing_one(monkeypatch):
    def broken(_name):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(_nvidia.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(_nvidia.importlib, "import_module", broken)
    assert str(TensorRT().missing()) == (
        "tensorrt is installed and can't be loaded (libnvinfer.so.10: cannot open shared object file); "
        'run: pip install --force-reinstall "tensorrt"'
    )
