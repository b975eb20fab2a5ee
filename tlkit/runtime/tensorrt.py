"""ONNX Runtime's TensorRT provider: one engine for all batch sizes of a graph, kept for the next process.

Left to itself it builds an engine again whenever a batch is smaller or larger than all before. It names a kept one by
the names in the graph, not by the weights, and does not start where another TensorRT built it.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import onnx
import onnxruntime

from tlkit.errors import TlkitError
from tlkit.runtime import cuda
from tlkit.util.files import cache_dir, sha256

PROVIDER = "TensorrtExecutionProvider"
ENGINES = "tensorrt"  # in the cache
LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")
TF32 = "NVIDIA_TF32_OVERRIDE"  # the provider has no option for it
PLACE, PROFILE = "trt_engine_cache_path", "trt_profile_{}_shapes"
Started = TypeVar("Started")


def load() -> str:
    """Load TensorRT from its Python package, or the system's, without TF32; return its version, empty without it."""
    os.environ.setdefault(TF32, "0")
    package = importlib.util.find_spec("tensorrt_libs")
    folders = list(package.submodule_search_locations or []) if package is not None else []
    for folder in [*folders, ""]:
        with suppress(OSError, AttributeError):
            library, _parser = (ctypes.CDLL(os.path.join(folder, name)) for name in LIBRARIES)
            return str(library.getInferLibVersion())
    return ""


def options(source: bytes | str, graph: onnx.GraphProto, most: int) -> dict[str, str]:
    """Return options for an engine of a graph for 1 to `most` rows, which is kept beside the timings of its layers.

    `source` is the file's content, or its path. What is kept holds for a GPU, its driver, the versions and the graph.
    """
    machine = (cuda.gpu(), onnxruntime.__version__, load(), os.environ[TF32])
    timings = cache_dir(ENGINES, hashlib.sha256(repr(machine).encode()).hexdigest()[:32])
    digest = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256(Path(source))
    found = {
        "trt_engine_cache_enable": "1",
        PLACE: str(cache_dir(str(timings), f"{digest[:32]}-{most}")),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(timings),
    }
    (given, *_) = graph.input
    rows, *sizes = given.type.tensor_type.shape.dim
    if not rows.dim_value and all(size.dim_value for size in sizes):
        for name, count in (("min", 1), ("opt", most), ("max", most)):
            shape = "x".join(str(size) for size in (count, *(size.dim_value for size in sizes)))
            found[PROFILE.format(name)] = f"{given.name}:{shape}"
    return found


def started(start: Callable[[], Started], given: dict[str, str]) -> Started:
    """Return what `start` returns, which starts the provider with `given` options; adapt them while it can't.

    A process that was killed may have left half an engine. Where TensorRT runs only parts of a graph, their inputs have
    other names than that of the profile.
    """
    while True:
        try:
            return start()
        except TlkitError as error:
            if not _adapted(given, error.what):
                raise


def _adapted(given: dict[str, str], why: str) -> bool:
    """Remove from the options, or the cache, what the provider refuses; return False if that is nothing there."""
    if "from cache" in why and PLACE in given:
        left = list(Path(given[PLACE]).iterdir())
        for file in left:
            file.unlink(missing_ok=True)
        return bool(left)
    shapes = [given.pop(PROFILE.format(name), None) for name in ("min", "opt", "max")] if "profiles" in why else []
    return any(shapes)
