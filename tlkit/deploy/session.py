"""An ONNX graph opened with ONNX Runtime: the session that needs neither torch nor a plugin."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime

from tlkit.errors import ArtefactError, DataError, ResourceError
from tlkit.plugin.contract import Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


DEVICES = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
GPU_BATCH = 64  # images in a call


class OnnxSession(Session):
    """ONNX Runtime on the CPU, or on an NVIDIA GPU by CUDA or TensorRT: `device`. It never falls back without a word.

    With `workers=1` one call at a time uses all cores: the least latency. With more, each call uses one core and that
    many threads may call `run` at once, which gives the most images a second (on two cores about a third more).
    `threads` says how many cores a call uses instead.
    """

    batch = 2  # the maps of two images stay in a core's cache; in eights, EfficientNet-Lite0 takes a tenth longer

    def __init__(self, file: Path, *, workers: int = 1, threads: int = 0, device: str = "cpu") -> None:
        self.file = file
        content = read_graph(file)
        providers = DEVICES[device]
        if providers[0] not in onnxruntime.get_available_providers():
            what = f"this ONNX Runtime has no {providers[0]}"
            raise ResourceError(what, do='run: pip uninstall -y onnxruntime && pip install "tlkit[gpu]"')
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads or (cores() if workers == 1 else 1)
        settings.log_severity_level = 4  # what it would print is in the error it raises
        try:
            self._session = onnxruntime.InferenceSession(content, settings, providers=list(providers))
        except Exception as error:  # onnxruntime has an exception class for each status, with no common base
            raise ArtefactError(f"ONNX Runtime refuses it: {error}", file=file, do="export it again") from error
        if self._session.get_providers()[0] != providers[0]:
            raise ResourceError(f"{providers[0]} does not start here", do="see why with: tlkit doctor")
        self.input: str = self._session.get_inputs()[0].name
        self.outputs: tuple[str, ...] = tuple(output.name for output in self._session.get_outputs())
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.workers = workers if device == "cpu" else 1
        if device != "cpu":
            self.batch = GPU_BATCH

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        names = list(outputs or self.outputs)
        try:
            return dict(zip(names, self._session.run(names, {self.input: array}), strict=True))
        except Exception as error:  # see above
            raise ArtefactError(f"ONNX Runtime fails at it: {error}", file=self.file, do="export it again") from error


@contextmanager
def on_disk(graph: onnx.ModelProto) -> Iterator[Path]:
    """A file that holds a graph for as long as it takes to open it."""
    with tempfile.TemporaryDirectory(prefix="tlkit-") as temporary:
        file = Path(temporary, "graph.onnx")
        onnx.save_model(graph, file)
        yield file


def read_graph(file: Path) -> bytes:
    """The bytes of a graph that ONNX's own checker accepts and that keeps all its weights inside.

    The runtime is given these bytes, not the path, so what was checked is what is run.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"can't be read: {(error.strerror or str(error)).lower()}", file=file) from error
    try:
        graph = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's DecodeError, which onnx does not re-export
        raise ArtefactError("not an ONNX file", file=file) from error
    outside = [tensor.name for tensor in _tensors(graph.graph) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise ArtefactError(
            f"its weights lie in other files ({outside[0]}), which is not safe to follow",
            file=file,
            do="export it again",
        )
    try:
        onnx.checker.check_model(content)
    except onnx.checker.ValidationError as error:
        raise ArtefactError(f"not a valid ONNX graph: {error}", file=file, do="export it again") from error
    return content


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph: initializers, constants, and those of the graphs inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)
