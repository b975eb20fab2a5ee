"""An ONNX graph opened with ONNX Runtime: the session that needs neither torch nor a plugin."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime

from tlkit.errors import ArtifactError, DataError, ResourceError, TlkitError
from tlkit.plugin.contract import Session
from tlkit.runtime import cuda
from tlkit.runtime import providers as bound
from tlkit.util.resources import cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


DEVICES = ("cpu", *bound.DEVICES)
LEVELS = ("all", "extended", "basic", "off")  # how far ONNX Runtime rewrites a graph before it runs it
_LEVELS = ("ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL")


class OnnxSession(Session):
    """ONNX Runtime on the CPU, or on an NVIDIA GPU by CUDA or TensorRT: `device`. It never falls back without a word.

    With `workers=1` one call at a time uses all cores: the least latency. With more, each call uses one core and that
    many threads may call `run` at once, which gives the most images a second (on two cores about a third more).
    `threads` says how many cores a call uses instead. `level` is one of LEVELS.
    """

    batch_size = 2  # the maps of two images stay in a core's cache; in eights, EfficientNet-Lite0 takes a tenth longer

    def __init__(
        self, file: Path, *, workers: int = 1, threads: int = 0, device: str = "cpu", level: str = "all"
    ) -> None:
        self.file = file
        content = read_graph(file)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads or (cores() if workers == 1 else 1)
        settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[LEVELS.index(level)])
        settings.log_severity_level = 4  # what it would print is in the error it raises
        self._session: Any
        self._bound: bound.Bound | None
        if device == "cpu":
            self._session = _start(content, settings, ["CPUExecutionProvider"], file)
            self._bound = None
        else:  # in this order, as they go in it, and the session computes on a stream that goes with the buffers
            self._session, self._bound = _start_on_gpu(content, settings, device, file)
        self.input: str = self._session.get_inputs()[0].name
        self.outputs: tuple[str, ...] = tuple(output.name for output in self._session.get_outputs())
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.workers = workers if device == "cpu" else 1
        if device != "cpu":
            self.batch_size = bound.BATCH

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        names = list(outputs or self.outputs)
        try:
            if self._bound is not None:
                got = self._bound.run(array, names)
                self.gpu_seconds = self._bound.seconds
                return got
            return dict(zip(names, self._session.run(names, {self.input: array}), strict=True))
        except TlkitError:
            raise
        except Exception as error:  # see `_start`
            raise ArtifactError(f"ONNX Runtime fails at it: {error}", file=self.file, do="export it again") from error


def _start(content: bytes, settings: Any, providers: Sequence[Any], file: Path) -> Any:
    """ONNX Runtime's own session, which does not try other providers when these fail."""
    try:
        return onnxruntime.InferenceSession(content, settings, providers=list(providers), enable_fallback=0)
    except Exception as error:  # onnxruntime has an exception class for each status, with no common base
        raise ArtifactError(f"ONNX Runtime refuses it: {error}", file=file, do="export it again") from error


def _start_on_gpu(content: bytes, settings: Any, device: str, file: Path) -> tuple[Any, bound.Bound]:
    """A session whose first provider runs on the GPU, and its buffers there; a ResourceError where that fails."""
    first = bound.DEVICES[device][0]
    if first not in onnxruntime.get_available_providers():
        what = f"this ONNX Runtime has no {first}"
        raise ResourceError(what, do='run: pip uninstall -y onnxruntime && pip install "tlkit[gpu]"')
    try:
        cuda.gpu()
        channel = cuda.Channel(cuda.runtime())
    except ResourceError as error:
        raise ResourceError(f"{first} does not start here: {error.what}", do=error.do) from error
    for graphs in (True, False):  # a graph of which some nodes run on the CPU can't be recorded as one of CUDA
        try:
            session = _start(content, settings, bound.providers(device, int(channel.stream), graphs=graphs), file)
        except ArtifactError:
            if graphs:
                continue
            raise
        if session.get_providers()[0] != first:
            break
        return session, bound.Bound(session, channel, graphs=graphs)
    raise ResourceError(f"{first} does not start here", do="see why with: tlkit doctor")


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
        raise ArtifactError("not an ONNX file", file=file) from error
    outside = [tensor.name for tensor in _tensors(graph.graph) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise ArtifactError(
            f"its weights lie in other files ({outside[0]}), which is not safe to follow",
            file=file,
            do="export it again",
        )
    try:
        onnx.checker.check_model(content)
    except onnx.checker.ValidationError as error:
        raise ArtifactError(f"not a valid ONNX graph: {error}", file=file, do="export it again") from error
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
