"""ONNX Runtime on an NVIDIA GPU, with its tensors bound to persistent buffers.

Copies go through pinned memory. Of two calls at once one is copied while the other is computed, and each waits once, at
its end: ONNX Runtime itself does not wait for the stream.
ONNX Runtime's own CUDA graphs stay off: they gained 4 to 7 % at a batch size of 64 on an H100, and a session that
captured one beside others in the process failed with an illegal memory access.
"""

from __future__ import annotations

import queue
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tlkit.runtime import tensorrt
from tlkit.runtime.cuda import Channel

BATCH = 64  # rows of the buffers; larger batches run in parts
SHAPES = (1, 8, BATCH)  # rows that are computed, as kernels are prepared for each number; fewer are padded
MANY = 250_000  # images from which a preparation pays, in batches of MANY_BATCH
MANY_BATCH = 256
CALLS = 2  # at once
DEVICES = {  # the providers of each device, the first of which has to start
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": (tensorrt.PROVIDER, "CUDAExecutionProvider"),
}


def provider_options(
    device: str, stream: int, *, half: bool = False, many: bool = False
) -> list[tuple[str, dict[str, str]]]:
    """Return the providers, with options, of a session that computes on `stream`.

    fp32 is fp32: with TF32, CUDA's default, features differ by 2e-3 from those of the training (1.3e-6 without).
    cuDNN's heuristics choose kernels for a new shape in a fraction of the time of a search. `half` is a graph in fp16,
    which TensorRT refuses unless told. For `many` images in fp16, channels last and fused biases gave 22,883 images/s
    instead of 12,077 on an H100, after 13 s of preparation.
    """
    shared = {"device_id": "0", "user_compute_stream": str(stream)}
    own = {"CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}}
    if half:
        own[tensorrt.PROVIDER] = {"trt_fp16_enable": "1"}
        own["CUDAExecutionProvider"] |= {"prefer_nhwc": "1", "fuse_conv_bias": "1"} if many else {}
    return [(name, shared | own.get(name, {})) for name in DEVICES[device]]


def load_libraries(provider: str) -> None:
    """Load NVIDIA's libraries from Python packages, such as those of PyTorch; ONNX Runtime finds the system's only."""
    if provider == tensorrt.PROVIDER:
        tensorrt.load()
    load = getattr(onnxruntime, "preload_dlls", None)  # new in 1.21
    if load is not None:
        with redirect_stdout(StringIO()):  # it prints what is missing, and without that the provider does not start
            load()


def cause(error: Exception) -> str:
    """Return why a call of CUDA failed, or all of another error: ONNX Runtime wraps it in names of its functions."""
    found = re.search(r"\w+ failure \d+: [^;]*\w", str(error))
    return found[0] if found else str(error)


class BoundSession:
    """Calls of a session that has `provider_options`, `CALLS` at once, beside the channel that owns its stream.

    `seconds` is the GPU time of the last call. Calls with fewer rows than `min_rows` are padded: its kernels are
    prepared, and those of another shape would take seconds.
    """

    def __init__(self, session: Any, owner: Channel, *, batch_size: int = BATCH) -> None:
        self._session, self.batch_size, self.seconds, self.min_rows = session, batch_size, 0.0, 1
        self._channels = [owner]
        self._bindings: dict[tuple[Channel, int, tuple[str, ...]], Any] = {}
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        (given,) = session.get_inputs()
        self._input: str = given.name
        self._idle = queue.SimpleQueue[Channel]()
        for _ in range(CALLS):
            self._channels.append(owner.beside())
            for tensor in (given, *session.get_outputs()):
                self._channels[-1].allocate(tensor.name, (batch_size, *tensor.shape[1:]), _dtype(tensor.type))
            self._idle.put(self._channels[-1])

    def close(self) -> None:
        """Release the session, then its buffers and its streams."""
        self._bindings.clear()
        self._session = None
        for channel in reversed(self._channels):
            channel.close()

    __del__ = close

    def run(self, array: NDArray[Any], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs for `array`, as `Session.run` does."""
        channel = self._idle.get()
        try:
            arrays = channel.run(self._input, array, outputs, partial(self._plan, channel, tuple(outputs)))
            self.seconds = channel.seconds
            return arrays
        finally:
            self._idle.put(channel)

    def _plan(self, channel: Channel, outputs: tuple[str, ...], rows: int) -> Callable[[], None]:
        """Return the call for so many rows."""
        rows = max(rows, self.min_rows)
        rows = next((shape for shape in SHAPES if rows <= shape < self.batch_size), self.batch_size)
        key = (channel, rows, outputs)  # behind the rows that were sent the buffer has those of an earlier call
        if key not in self._bindings:
            self._bindings[key] = self._bind(*key)
        return partial(self._session.run_with_iobinding, self._bindings[key], self._options)

    def _bind(self, channel: Channel, rows: int, outputs: tuple[str, ...]) -> Any:
        """Return a binding to the first rows of the buffers."""
        binding = self._session.io_binding()
        for name, bind in {self._input: binding.bind_input, **dict.fromkeys(outputs, binding.bind_output)}.items():
            buffer = channel.buffers[name]
            shape = (rows, *buffer.host.shape[1:])
            bind(name, "cuda", 0, buffer.host.dtype.type, shape, buffer.device)
        return binding


def _dtype(text: str) -> type[np.generic]:
    """Return the NumPy type of ONNX Runtime's `tensor(uint8)`."""
    name = text.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name)).type
