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

from tlkit.data.resampling import Layout
from tlkit.errors import ResourceError
from tlkit.runtime import tensorrt
from tlkit.runtime.cuda import Channel
from tlkit.runtime.resizing import RESIZED, ROWS, WORDS

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
        self._resizing: Any = None
        self.layout: Layout | None = None  # of rows that can be run
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
        self._session = self._resizing = self.layout = None
        for channel in reversed(self._channels):
            channel.close()

    __del__ = close

    @property
    def stream(self) -> int:
        """The stream that it computes on."""
        return int(self._channels[0].stream)

    def resize_by(self, session: Any, its: Layout, rows: NDArray[np.uint8], images: NDArray[np.uint8]) -> None:
        """Run rows of a layout through `session` first, on the same stream, if it makes these images of these rows.

        Raises ResourceError if it makes others, or if the GPU has no memory for them.
        """
        self._resizing, held = session, [self._idle.get() for _ in range(CALLS)]
        try:
            for channel in held:
                channel.allocate(ROWS, (self.batch_size, its.length), np.uint8)
                for count in {*SHAPES, self.batch_size}:
                    found = channel.run(ROWS, rows[:count], [self._input], partial(self._resize, channel, its))
                    if not np.array_equal(found[self._input], images[:count]):
                        raise ResourceError("it gives other pixels than Pillow")
            self.layout = its
        finally:
            for channel in held:
                if self.layout is None and ROWS in channel.buffers:
                    channel.buffers.pop(ROWS).free()
                self._idle.put(channel)
            self._resizing = None if self.layout is None else session

    def run(self, array: NDArray[Any], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs for images `(N, S, S, 3)` or, if it has a layout, for rows, as `Session.run` does."""
        channel = self._idle.get()
        try:
            its = self.layout if array.ndim == 2 else None
            plan = partial(self._plan, channel, tuple(outputs), its)
            arrays = channel.run(self._input if its is None else ROWS, array, outputs, plan)
            self.seconds = channel.seconds
            return arrays
        finally:
            self._idle.put(channel)

    def _plan(self, channel: Channel, outputs: tuple[str, ...], its: Layout | None, rows: int) -> Callable[[], None]:
        """Return the call for so many rows."""
        rows = max(rows, self.min_rows)
        rows = next((shape for shape in SHAPES if rows <= shape < self.batch_size), self.batch_size)
        key = (channel, rows, outputs)  # behind the rows that were sent the buffer has those of an earlier call
        if key not in self._bindings:
            self._bindings[key] = self._bind(*key)
        calls = [] if its is None else [self._resize(channel, its, rows)]
        return partial(_do, [*calls, partial(self._session.run_with_iobinding, self._bindings[key], self._options)])

    def _resize(self, channel: Channel, its: Layout, rows: int) -> Callable[[], None]:
        """Return the call that makes images of so many rows, `BATCH` at a time."""
        given, images, calls = channel.buffers[ROWS], channel.buffers[self._input], list[Callable[[], None]]()
        for start in range(0, rows, BATCH):
            count, binding = min(BATCH, rows - start), self._resizing.io_binding()
            place = given.device + start * its.length
            binding.bind_input(ROWS, "cuda", 0, np.uint8, (count, its.length), place)
            binding.bind_input(WORDS, "cuda", 0, np.int32, (count, its.length // 4), place)
            shape = (count, *images.host.shape[1:])
            binding.bind_output(RESIZED, "cuda", 0, np.uint8, shape, images.device + start * images.host[0].nbytes)
            calls.append(partial(self._resizing.run_with_iobinding, binding, self._options))
        return partial(_do, calls)

    def _bind(self, channel: Channel, rows: int, outputs: tuple[str, ...]) -> Any:
        """Return a binding to the first rows of the buffers."""
        binding = self._session.io_binding()
        for name, bind in {self._input: binding.bind_input, **dict.fromkeys(outputs, binding.bind_output)}.items():
            buffer = channel.buffers[name]
            shape = (rows, *buffer.host.shape[1:])
            bind(name, "cuda", 0, buffer.host.dtype.type, shape, buffer.device)
        return binding


def _do(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _dtype(text: str) -> type[np.generic]:
    """Return the NumPy type of ONNX Runtime's `tensor(uint8)`."""
    name = text.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name)).type
