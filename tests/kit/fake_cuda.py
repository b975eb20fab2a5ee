"""CUDA and an engine as far as `EngineSession` and `BoundSession` use them, on a machine without a GPU.

The memory is the computer's own. Copies and kernels happen when an event is waited for, in a random order among those
that streams and events allow. It shows that what is copied is what is computed, in order; what a GPU makes of it, it
can't.
"""

# ruff: noqa: N802, N815 - the names are CUDA's

from __future__ import annotations

import ctypes
import enum
import threading
from collections import deque
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import onnxruntime
import pytest
from tlkit_standard.targets.tensorrt_rtx import TensorRTRTX

from tlkit.runtime import cuda as cuda_module
from tlkit.runtime import tensorrt

needs_rtx = pytest.mark.skipif(
    TensorRTRTX().missing() is not None, reason="needs tensorrt-rtx: pip install 'tlkit[tensorrt-rtx]'"
)


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorStreamCaptureUnsupported = 900


class Cuda:
    """The functions of `cuda.bindings.runtime`; `done` notes what costs time, `waits` counts waits."""

    cudaError_t = Status
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="send", cudaMemcpyDeviceToHost="fetch")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1

    def __init__(self, *, records=True, seed=0):
        self.records, self.done, self.recording, self.waits = records, [], None, 0
        self.memory = {}
        self.streams, self.lock, self.random = {}, threading.RLock(), Random(seed)

    def enqueue(self, name, work, stream):
        """Put work on a stream, or record it while a graph is recorded."""
        if self.recording is not None:
            self.recording.append((name, work))
            return
        self.done.append(name)
        self.put(stream, work)

    def put(self, stream, work, ready=lambda: True):
        """Put work on a stream, which begins once it is ready."""
        with self.lock:
            self.streams[stream].append((ready, work))

    def wait(self, over):
        """Do what is on the streams, in a random order, until that is over."""
        self.waits += 1
        with self.lock:
            while not over():
                ready = [pending for pending in self.streams.values() if pending and pending[0][0]()]
                _, work = self.random.choice(ready).popleft()
                work()

    def cudaGetErrorString(self, status):
        return Status.cudaSuccess, str(status).encode()

    def cudaGetLastError(self):
        return (Status.cudaSuccess,)

    def cudaGetDeviceCount(self):
        return Status.cudaSuccess, 1

    def cudaGetDeviceProperties(self, _number):
        return Status.cudaSuccess, SimpleNamespace(name=b"Fake 1000", major=8, minor=6)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        stream = 7 + len(self.streams)
        self.streams[stream] = deque()
        return Status.cudaSuccess, stream

    def cudaStreamWaitEvent(self, stream, event, _flags):
        number = event.recorded
        self.put(stream, lambda: None, lambda: event.happened >= number)
        return (Status.cudaSuccess,)

    def cudaStreamDestroy(self, stream):
        self.streams[stream].clear()
        return (Status.cudaSuccess,)

    def cudaEventCreate(self):
        return Status.cudaSuccess, SimpleNamespace(recorded=0, happened=0)

    def cudaEventRecord(self, event, stream):
        event.recorded += 1
        self.put(stream, partial(setattr, event, "happened", event.recorded))
        return (Status.cudaSuccess,)

    def cudaEventSynchronize(self, event):
        self.wait(lambda: event.happened >= event.recorded)
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

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        self.enqueue(kind, lambda: ctypes.memmove(to, source, size), stream)
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

    def cudaGraphLaunch(self, graph, stream):
        self.enqueue("graph", lambda: [work() for _, work in graph], stream)
        return (Status.cudaSuccess,)


class Context:
    """An execution context: adds up each row of uint8 `images` to float32 `features`."""

    def __init__(self, cuda, width):
        self.cuda, self.width, self.addresses, self.shapes = cuda, width, {}, []

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def set_input_shape(self, _name, shape):
        self.shapes.append(tuple(shape))

    def execute_async_v3(self, stream):
        rows = self.shapes[-1][0]

        def work():
            images = self._array("images", np.uint8, (rows, self.width))
            self._array("features", np.float32, (rows, 1))[:] = images.sum(axis=1, keepdims=True)

        self.cuda.enqueue("kernel", work, stream)
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

    cuda: ClassVar[Cuda]
    opened: ClassVar[list] = []
    failure: ClassVar[str] = ""
    _session = onnxruntime.InferenceSession

    def __init__(self, content, sess_options=None, *, providers, **more):
        self.names = [each if isinstance(each, str) else each[0] for each in providers]
        self.stream = next((int(each[1]["user_compute_stream"]) for each in providers if not isinstance(each, str)), 0)
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

    def run_with_iobinding(self, binding, options):
        if self.failure:
            raise RuntimeError(self.failure)
        self.cuda.enqueue("network", partial(self.inner.run_with_iobinding, binding.inner), self.stream)
        if options.get_run_config_entry("disable_synchronize_execution_providers") != "1":
            self.cuda.wait(lambda: not self.cuda.streams[self.stream])


def replace_cuda(monkeypatch, **options):
    """Let the devices of ONNX Runtime mean the stand-in; return it and the class of ONNX Runtime's sessions there."""
    cuda = Cuda(**options)
    made = type("Session", (CudaProvider,), {"opened": [], "cuda": cuda})
    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setenv(tensorrt.TF32, "0")
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
