"""CUDA and an engine as far as `EngineSession` and `BoundSession` use them, on a machine without a GPU.

The memory is the computer's own, and copies and kernels happen when they are asked for, or, while a graph is recorded,
whenever it is launched. It shows that what is copied is what is computed, in order; what a GPU makes of it, it can't.
"""

# ruff: noqa: N802, N815 - the names are CUDA's

from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import onnxruntime
import pytest
from tlkit_standard.targets.tensorrt_rtx import TensorRTRTX

from tlkit.runtime import cuda as cuda_module

needs_rtx = pytest.mark.skipif(
    TensorRTRTX().missing() is not None, reason="needs tensorrt-rtx: pip install 'tlkit[tensorrt-rtx]'"
)


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorStreamCaptureUnsupported = 900


class Cuda:
    """The functions of `cuda.bindings.runtime`; `done` notes the calls that cost time."""

    cudaError_t = Status
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="send", cudaMemcpyDeviceToHost="fetch")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *, records=True):
        self.records, self.done, self.recording = records, [], None
        self.memory = {}

    def enqueue(self, name, work):
        """Run the work, or record it while a graph is recorded."""
        if self.recording is not None:
            self.recording.append((name, work))
        else:
            self.done.append(name)
            work()

    def cudaGetErrorString(self, status):
        return Status.cudaSuccess, str(status).encode()

    def cudaGetLastError(self):
        return (Status.cudaSuccess,)

    def cudaGetDeviceCount(self):
        return Status.cudaSuccess, 1

    def cudaGetDeviceProperties(self, _number):
        return Status.cudaSuccess, SimpleNamespace(name=b"Fake 1000", major=8, minor=6)

    def cudaStreamCreate(self):
        return Status.cudaSuccess, 7

    def cudaStreamSynchronize(self, _stream):
        return (Status.cudaSuccess,)

    def cudaStreamDestroy(self, _stream):
        return (Status.cudaSuccess,)

    def cudaEventCreate(self):
        return Status.cudaSuccess, object()

    def cudaEventRecord(self, _event, _stream):
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, _begin, _end):
        return Status.cudaSuccess, 2.0

    def cudaEventDestroy(self, _event):
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size):
        room = (ctypes.c_byte * size)()
        self.memory[ctypes.addressof(room)] = room
        return Status.cudaSuccess, ctypes.addressof(room)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address):
        del self.memory[address]
        return (Status.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to, source, size, kind, _stream):
        self.enqueue(kind, lambda: ctypes.memmove(to, source, size))
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, _stream, _mode):
        self.recording = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, _stream):
        recorded, self.recording = self.recording, None
        if not self.records:
            return Status.cudaErrorStreamCaptureUnsupported, None
        return Status.cudaSuccess, recorded

    def cudaGraphInstantiate(self, graph, _flags):
        return Status.cudaSuccess, list(graph)

    def cudaGraphDestroy(self, _graph):
        return (Status.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph, _stream):
        self.done.append("graph")
        for _, work in graph:
            work()
        return (Status.cudaSuccess,)


class Context:
    """An execution context: adds up each row of uint8 `images` to float32 `features`."""

    def __init__(self, cuda, width):
        self.cuda, self.width, self.addresses, self.shapes = cuda, width, {}, []

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def set_input_shape(self, _name, shape):
        self.shapes.append(tuple(shape))

    def execute_async_v3(self, _stream):
        rows = self.shapes[-1][0]

        def work():
            images = self._array("images", np.uint8, (rows, self.width))
            self._array("features", np.float32, (rows, 1))[:] = images.sum(axis=1, keepdims=True)

        self.cuda.enqueue("kernel", work)
        return True

    def _array(self, name, dtype, shape):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        content = memoryview((ctypes.c_byte * size).from_address(self.addresses[name]))
        return np.frombuffer(content, dtype).reshape(shape)


class Engine:
    """An engine for 1 to `batch` rows."""

    num_io_tensors = 2

    def __init__(self, cuda, batch_size=4, width=5):
        self.cuda, self.batch_size, self.width, self.contexts = cuda, batch_size, width, []

    def get_tensor_name(self, index):
        return ("images", "features")[index]

    def get_tensor_mode(self, name):
        return name == "images"

    def get_tensor_profile_shape(self, _name, _profile):
        return [(1, self.width), (2, self.width), (self.batch_size, self.width)]

    def get_tensor_shape(self, name):
        return (-1, self.width if name == "images" else 1)

    def get_tensor_dtype(self, name):
        return np.uint8 if name == "images" else np.float32

    def create_execution_context(self):
        self.contexts.append(Context(self.cuda, self.width))
        return self.contexts[-1]


class CudaProvider:
    """ONNX Runtime's session on the stand-in: its CPU provider computes what the CUDA provider would.

    `opened` has the options of each session's providers; `failure` is what every call raises, if set.
    """

    opened: ClassVar[list] = []
    failure: ClassVar[str] = ""
    _session = onnxruntime.InferenceSession

    def __init__(self, content, sess_options=None, *, providers, **more):
        self.names = [each if isinstance(each, str) else each[0] for each in providers]
        self.opened.append(providers)
        self.inner = self._session(content, sess_options, providers=["CPUExecutionProvider"], **more)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def get_providers(self):
        return self.names

    def io_binding(self):
        binding = self.inner.io_binding()
        bound = SimpleNamespace(inner=binding)
        for name in ("bind_input", "bind_output"):
            bind = getattr(binding, name)
            setattr(bound, name, lambda tensor, _cuda, *rest, bind=bind: bind(tensor, "cpu", *rest))
        return bound

    def run_with_iobinding(self, binding):
        if self.failure:
            raise RuntimeError(self.failure)
        self.inner.run_with_iobinding(binding.inner)


def replace_cuda(monkeypatch):
    """Let `--device cuda` mean the stand-in; return it and the class of ONNX Runtime's sessions there."""
    cuda, made = Cuda(), type("Session", (CudaProvider,), {"opened": []})
    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(cuda_module, "runtime", lambda: cuda)
    return cuda, made


def library(engine):
    """The module `tensorrt`, whose runtime gives this engine, or None for what is no engine."""
    made = []

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, _log):
            made.append(self)

        def deserialize_cuda_engine(self, content):
            return engine if content == b"engine" else None

    return SimpleNamespace(
        Runtime=Runtime, TensorIOMode=SimpleNamespace(INPUT=True), nptype=lambda dtype: dtype, made=made
    )
