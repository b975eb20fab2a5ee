"""ONNX Runtime sessions of exported graphs, which need neither torch nor a plugin."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from tlkit.data.resampling import Layout, layout
from tlkit.errors import ArtifactError, DataError, ResourceError, TlkitError, TlkitNote, UsageError
from tlkit.graph.metadata import select_head
from tlkit.plugin.contract import FEATURES, Preprocessing, Session
from tlkit.runtime import cuda, providers, resizing, tensorrt
from tlkit.util.files import open_regular, temporary_dir
from tlkit.util.resources import REFUSED, cores, is_refused

DEVICES = ("cpu", *providers.DEVICES)
_LARGE = 2**26  # bytes of a graph; below it, copies don't matter
LEVELS = ("all", "extended", "basic", "off")  # of graph optimization
_FATAL = 4  # a severity of ONNX Runtime's loggers
_DEVICE_FAILURES = re.compile(r"cuda|cudnn|cublas|cufft|tensorrt|\bnv\w+ error", re.IGNORECASE)


class OnnxSession(Session):
    """ONNX Runtime on the CPU, or on an NVIDIA GPU through CUDA or TensorRT; it never falls back to another device.

    With `workers=1` one call at a time uses all cores, for the lowest latency. With more, each call uses one core and
    `workers` threads may call `run` concurrently, for the highest throughput (a third more on two cores). `threads`
    overrides the number of cores per call. `level` is the graph optimization, one of LEVELS. `spin_us` is for how many
    microseconds threads spin that wait for their part of a call; ONNX Runtime's own default is fastest where nothing
    else needs the cores. `images` is how many are expected: on a GPU, many are worth a longer preparation.
    """

    batch_size = 2  # the maps of two images stay in a core's cache; with 8, EfficientNet-Lite0 takes a tenth longer
    _session: Any = None
    _bound: providers.BoundSession | None = None
    resizing_rate = 0.0  # images per second that a GPU resizes and computes

    def __init__(
        self,
        file: Path,
        *,
        workers: int = 1,
        threads: int = 0,
        device: str = "cpu",
        level: str = "all",
        spin_us: int | None = None,
        images: int = 0,
    ) -> None:
        if device not in DEVICES:
            raise UsageError(f"there is no device {device!r}", do=f"choose one of {', '.join(DEVICES)}")
        self.file, self.device, self.level = file, device, level
        self.setting = f"{device}, {level}"  # what decides on the output besides the graph
        options = quiet_options(threads or (cores() if workers == 1 else 1))
        name = "ORT_DISABLE_ALL" if level == "off" else f"ORT_ENABLE_{level.upper()}"
        if spin_us is not None:
            options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, name)
        with _checked(file) as source:
            if device == "cpu":
                self._session = _start(source, options, ["CPUExecutionProvider"], file, device)
            else:
                self._session, self._bound = _start_on_gpu(source, options, device, file, images)
                self.batch_size = self._bound.batch_size
        try:
            self.input: str = self._session.get_inputs()[0].name
            self.outputs: tuple[str, ...] = tuple(output.name for output in self._session.get_outputs())
            self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        except (UnicodeDecodeError, IndexError) as error:
            what = f"its inputs, outputs or metadata are invalid: {error}"
            raise ArtifactError(what, file=file, do="export it again") from error
        self.workers = workers if self._bound is None else providers.CALLS
        self._untried = threading.Semaphore()  # of a preparation

    def warm_up(self, rows: int) -> None:
        """Have a GPU prepare its kernels for batches of at most so many rows; the first call would have to wait."""
        if self._bound is not None:
            self._bound.min_rows = min(rows, self.batch_size)
            self.run(self.black(self._bound.min_rows))

    def black(self, rows: int) -> NDArray[np.uint8]:
        """Return so many black images."""
        return np.zeros((rows, *self._session.get_inputs()[0].shape[1:]), np.uint8)

    def prepare_resizing(self, preprocessing: Preprocessing) -> None:
        """Have a GPU crop and resize images from now on, if it gives what Pillow gives and has the memory; try once."""
        if self._bound is None or not self._untried.acquire(blocking=False):
            return
        try:
            with self._explaining():
                its = layout(preprocessing)
                options = providers.provider_options("cuda", self._bound.stream)
                made = _start(resizing.graph(its), quiet_options(1), options, self.file, self.device)
                rows, images = resizing.examples(preprocessing, self.batch_size)
                self._bound.resize_by(made, its, rows, images)
                for _ in range(2):  # the first chooses kernels
                    self._bound.run(rows, self.outputs[:1])
                self.resizing_rate = len(rows) / self._bound.seconds
        except TlkitError as error:
            warnings.warn(f"the CPU resizes images, as {self.device} can't: {error.what}", TlkitNote, stacklevel=2)

    @property
    def layout(self) -> Layout | None:
        """The layout of the rows of `tlkit.data.resampling` that `run` takes, too; None if it takes none."""
        return None if self._bound is None else self._bound.layout

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        names = list(outputs or self.outputs)
        if self._session is None:
            raise UsageError("the session is closed", file=self.file)
        with self._explaining():
            if self._bound is not None:
                arrays = self._bound.run(array, names)
                self.gpu_seconds = self._bound.seconds
                return arrays
            return dict(zip(names, self._session.run(names, {self.input: array}), strict=True))

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except TlkitError:
            raise
        except Exception as error:  # see `_start`
            raise _explained("ONNX Runtime fails", error, self.file, self.device) from error

    def close(self) -> None:
        self._session = None  # before its stream
        if self._bound is not None:
            self._bound.close()
        self._bound = None

    __del__ = close


class Wrapped(Session):
    """A session on another one, whose input, metadata and runtime config it has; `outputs` are its own, if any."""

    def __init__(self, session: Session, outputs: Sequence[str] = ()) -> None:
        self._session = session
        self.input, self.outputs, self.metadata = session.input, tuple(outputs or session.outputs), session.metadata
        self.workers, self.batch_size = session.workers, session.batch_size

    def close(self) -> None:
        self._session.close()


class HeadSession(Wrapped):
    """One head of a graph with several; computes only that head's outputs, under their usual names."""

    def __init__(self, session: Session, head: str) -> None:
        # Of each output, the name that it has in the graph.
        own = head_output(head, "")
        theirs = [name for name in session.outputs if name.startswith(own)]
        self.names = {FEATURES: FEATURES, **{name.removeprefix(own): name for name in theirs}}
        super().__init__(session, tuple(self.names))
        self.metadata = select_head(session.metadata, head)

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        names = list(outputs or self.outputs)
        arrays = self._session.run(array, [self.names[name] for name in names])
        return {name: arrays[self.names[name]] for name in names}


def head_output(head: str, output: str) -> str:
    """Return the name of a head's output in a graph with several heads."""
    return f"{head}/{output}"


def quiet_options(threads: int = 0) -> Any:
    """Return options for a session of ONNX Runtime that prints nothing: what it raises says the same.

    `threads` is the number of cores per call, 0 for all. Warnings of its environment, such as those about devices, come
    from a logger of the process.
    """
    onnxruntime.set_default_logger_severity(_FATAL)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, _FATAL
    return options


def _start(source: bytes | str, options: Any, names: Sequence[Any], file: Path, device: str) -> Any:
    """Return ONNX Runtime's own session, which does not try other providers if these fail."""
    try:
        return onnxruntime.InferenceSession(source, options, providers=list(names), enable_fallback=0)
    except Exception as error:  # onnxruntime has an exception class for each status, with no common base
        raise _explained("ONNX Runtime does not start", error, file, device) from error


def _explained(what: str, error: Exception, file: Path, device: str) -> TlkitError:
    """Return the error to raise: memory or the device is at fault, a resource, or else the file is."""
    if is_refused(error):
        return ResourceError(f"{what}: {error}", file=file, do=REFUSED)
    if device != "cpu" and _DEVICE_FAILURES.search(str(error)):
        do = "see: tlkit doctor; or run it on the CPU with --device cpu"
        return ResourceError(f"{what} on the device {device}: {providers.cause(error)}", file=file, do=do)
    return ArtifactError(f"{what}: {error}", file=file, do="export it again")


def check_kernels(file: Path, device: str) -> None:
    """Raise ResourceError for an int8 graph on a GPU: ONNX Runtime's CUDA has no integer kernels and computes in float.

    With Q/DQ between the layers it is slower than fp32, for the errors of int8. TensorRT takes no zero points.
    """
    if device not in providers.DEVICES:
        return
    graph = onnx.load_model_from_string(read_graph(file)).graph
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        what = f"ONNX Runtime has no int8 kernels for this graph on the device {device}: it would be slower than fp32"
        raise ResourceError(what, file=file, do="take --precision fp16, or export it for --tensorrt, or the CPU")


def _start_on_gpu(
    source: bytes | str, options: Any, device: str, file: Path, images: int
) -> tuple[Any, providers.BoundSession]:
    """Return a session whose first provider runs on the GPU, bound to buffers there. Raises ResourceError."""
    first = providers.DEVICES[device][0]
    if first not in onnxruntime.get_available_providers():
        what = f"this ONNX Runtime has no {first}"
        raise ResourceError(what, do='run: pip uninstall -y onnxruntime && pip install "tlkit[gpu]"')
    providers.load_libraries(first)
    try:
        cuda.gpu()
        channel = cuda.Channel(cuda.runtime())
    except ResourceError as error:
        raise ResourceError(f"{first} does not start here: {error.what}", do=error.do) from error
    try:
        many = images >= providers.MANY
        size = providers.MANY_BATCH if many else providers.BATCH
        graph = _graph(source) if many or device == "tensorrt" else onnx.GraphProto()
        settings = providers.provider_options(device, int(channel.stream), half=_is_half(graph), many=many)
        if device == "tensorrt":
            settings[0][1].update(tensorrt.options(source, graph, size))
        session = tensorrt.started(lambda: _start(source, options, settings, file, device), settings[0][1])
        if session.get_providers()[0] == first:
            return session, providers.BoundSession(session, channel, batch_size=size)
    except TlkitError:
        channel.close()
        raise
    channel.close()
    raise ResourceError(f"{first} does not start here", do="see why with: tlkit doctor")


def _graph(source: bytes | str) -> onnx.GraphProto:
    return (onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load_model(source)).graph


def _is_half(graph: onnx.GraphProto) -> bool:
    """Return whether a graph has weights in fp16."""
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)


@contextmanager
def on_disk(graph: onnx.ModelProto) -> Iterator[Path]:
    """Yield a temporary file with a graph."""
    with temporary_dir() as temporary:
        file = temporary / "graph.onnx"
        onnx.save_model(graph, file)
        yield file


@contextmanager
def _checked(file: Path) -> Iterator[bytes | str]:
    """Yield a graph that passes `read_graph`: its bytes, or if it is large, what stands for the file that was checked.

    ONNX Runtime keeps the bytes that it gets, beside the weights that it makes of them.
    """
    with ExitStack() as opened:
        try:
            stream = opened.enter_context(open_regular(file))
        except OSError as error:
            raise _unreadable(file, error) from error
        content = _check(stream, file)
        descriptor = f"/proc/self/fd/{stream.fileno()}"  # that of another file in its place would be another
        if len(content) < _LARGE or not os.path.exists(descriptor):
            yield content
        else:
            del content
            yield descriptor


def load_graph(file: Path) -> onnx.ModelProto:
    """Return a graph that somebody may have changed, see `read_graph`."""
    return onnx.load_model_from_string(read_graph(file))


def read_graph(file: Path) -> bytes:
    """Return the bytes of a graph that passes ONNX's checker and holds all its weights inside.

    A runtime gets these bytes, not the path, so that what was checked is what runs.
    """
    try:
        with open_regular(file) as stream:
            return _check(stream, file)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> DataError:
    return DataError(f"can't be read: {(error.strerror or str(error)).lower()}", file=file)


def _check(stream: IO[bytes], file: Path) -> bytes:
    try:
        content = stream.read()
    except OSError as error:
        raise _unreadable(file, error) from error
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
    del graph  # a copy of the weights; the checker makes one
    try:
        onnx.checker.check_model(content)
    except (onnx.checker.ValidationError, ValueError) as error:  # the latter where it quotes bytes that are no text
        raise ArtifactError(f"not a valid ONNX graph: {error}", file=file, do="export it again") from error
    return content


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph: initializers, constants, and those of the graphs inside its nodes."""
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
