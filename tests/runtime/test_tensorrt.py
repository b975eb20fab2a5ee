"""ONNX Runtime's TensorRT provider, as far as a machine without a GPU shows: what it is told, and what is kept."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest

from tests.kit.fake_cuda import replace_cuda
from tlkit import doctor
from tlkit.errors import ArtifactError, ResourceError
from tlkit.runtime import cuda, tensorrt
from tlkit.runtime.session import OnnxSession

# What the provider of onnxruntime-gpu 1.31.1 says.
PARTS = (
    "User needs to provide all the dynamic shape inputs with associated profiles; main graph is in TRT/CUDA/CPU parts"
)
BROKEN = "TensorRT EP could not deserialize engine from cache: /cache/graph_sm90.engine"


@pytest.fixture
def file(tiny_run):
    return tiny_run / "onnx/fp32/model.onnx"


@pytest.fixture
def provider(monkeypatch, own_cache):
    assert own_cache.is_dir()
    return replace_cuda(monkeypatch)[1]


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """TensorRT in a Python package, by its name; returns the paths that are loaded."""
    (tmp_path / "tensorrt_libs").mkdir()
    (tmp_path / "tensorrt_libs/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    loaded, library = [], SimpleNamespace(getInferLibVersion=lambda: 101303)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)  # those of CUDA
    monkeypatch.setattr(ctypes, "CDLL", lambda path: loaded.append(path) or library)
    return loaded


def given(provider, file, **options):
    """Return the options that the provider gets."""
    OnnxSession(file, device="tensorrt", **options).close()
    ((name, found), (other, _)) = provider.opened[-1]
    assert (name, other) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    return {key: value for key, value in found.items() if key != "user_compute_stream"}


@pytest.mark.parametrize(("images", "most"), [(0, 64), (10**6, 256)])
def test_one_engine_serves_all_batch_sizes_and_is_kept_with_its_timings(provider, file, own_cache, images, most):
    found = given(provider, file, images=images)
    profile = [found[f"trt_profile_{name}_shapes"] for name in ("min", "opt", "max")]
    assert profile == ["images:1x32x32x3", *[f"images:{most}x32x32x3"] * 2]
    assert found["trt_engine_cache_enable"] == found["trt_timing_cache_enable"] == "1"
    engines, timings = (Path(found[f"trt_{name}_cache_path"]) for name in ("engine", "timing"))
    assert engines.is_dir()
    assert engines.parent == timings
    assert timings.parent == own_cache / "tensorrt"
    assert given(provider, file, images=images) == found


def test_a_graph_of_one_batch_size_needs_no_profile(provider, file, tmp_path):
    graph = onnx.load(file)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(graph, tmp_path / "four.onnx")
    assert not [name for name in given(provider, tmp_path / "four.onnx") if "profile" in name]


def test_an_engine_is_kept_for_weights_a_gpu_its_driver_and_the_versions(provider, file, tmp_path, monkeypatch):
    def place(path=file, **options):
        return given(provider, path, **options)["trt_engine_cache_path"]

    graph, other = onnx.load(file), tmp_path / "other.onnx"
    weights = next(each for each in graph.graph.initializer if each.raw_data)
    weights.raw_data = bytes(len(weights.raw_data))
    onnx.save(graph, other)
    found = [place(), place(other), place(images=10**6)]
    for name in ("Fake 2000", "Fake 3000"):
        monkeypatch.setattr(cuda, "gpu", lambda name=name: cuda.Gpu(name, "8.6", "580"))
        found.append(place())
    monkeypatch.setattr(tensorrt.onnxruntime, "__version__", "9.9")
    found.append(place())
    monkeypatch.setattr(tensorrt, "load", lambda: "101401")
    found.append(place())
    monkeypatch.setenv(tensorrt.TF32, "1")
    found.append(place())
    assert len(set(found)) == len(found)


def test_tf32_is_off_unless_it_is_asked_for(installed, monkeypatch):
    for asked, wanted in ((None, "0"), ("1", "1")):
        monkeypatch.delenv(tensorrt.TF32)
        if asked is not None:
            monkeypatch.setenv(tensorrt.TF32, asked)
        tensorrt.load()
        assert os.environ[tensorrt.TF32] == wanted
    assert installed


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch):
    monkeypatch.setenv(tensorrt.TF32, "0")


def test_its_libraries_are_found_in_their_package_before_a_session_starts(provider, file, installed, tmp_path):
    libraries = [str(tmp_path / "tensorrt_libs" / name) for name in ("libnvinfer.so.10", "libnvonnxparser.so.10")]
    assert doctor.fault("TensorrtExecutionProvider") is None
    assert installed == libraries
    assert tensorrt.load() == "101303"
    assert doctor.fault("CUDAExecutionProvider") is None
    given(provider, file)
    assert set(installed) == set(libraries)


def test_without_it_there_is_no_version():
    assert tensorrt.load() == ""


def failing(provider, monkeypatch, *messages):
    """Let the next sessions fail."""
    left, start = list(messages), provider._session

    def maybe(*arguments, **options):
        if left:
            raise RuntimeError(left.pop(0))
        return start(*arguments, **options)

    monkeypatch.setattr(provider, "_session", staticmethod(maybe))
    return left


def test_a_graph_that_it_runs_in_parts_starts_without_a_profile(provider, file, monkeypatch):
    failing(provider, monkeypatch, PARTS)
    found = given(provider, file)
    assert not [name for name in found if "profile" in name]
    assert found["trt_engine_cache_enable"] == "1"
    failing(provider, monkeypatch, PARTS, PARTS)
    with pytest.raises(ResourceError, match="User needs to provide"):
        OnnxSession(file, device="tensorrt")


def test_half_an_engine_is_built_again(provider, file, monkeypatch):
    half = Path(given(provider, file)["trt_engine_cache_path"]) / "graph_sm90.engine"
    half.write_bytes(b"half")
    left = failing(provider, monkeypatch, BROKEN)
    assert "trt_profile_min_shapes" in given(provider, file)
    assert not half.exists()
    assert not left
    failing(provider, monkeypatch, BROKEN)  # and nothing is there
    with pytest.raises(ResourceError, match="could not deserialize"):
        OnnxSession(file, device="tensorrt")


def test_other_failures_are_not_tried_again(provider, file, monkeypatch):
    left = failing(provider, monkeypatch, "the graph is broken", "once more")
    with pytest.raises(ArtifactError, match="the graph is broken"):
        OnnxSession(file, device="tensorrt")
    assert left == ["once more"]
