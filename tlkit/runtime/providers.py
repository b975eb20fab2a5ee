"""ONNX Runtime on an NVIDIA GPU, with its tensors bound to persistent buffers.

Copies go through pinned memory and on the stream that ONNX Runtime computes on, so that a call waits once, at its end.
ONNX Runtime's own CUDA graphs stay off: they gained 4 to 7 % at a batch size of 64 on an H100, and a session that
captured one beside others in the process failed with an illegal memory access.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.runtime.cuda import Channel

BATCH = 64  # rows of the buffers; larger batches run in parts
SHAPES = (1, 8, BATCH)  # rows that are computed, as kernels are prepared for each number; fewer are padded
MANY = 250_000  # images from which the preparation of `fast` pays, in batches of MANY_BATCH
MANY_BATCH = 256
DEVICES = {  # the providers of each device, the first of which has to start
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}


def provider_options(device: str, stream: int, *, fast: bool = False) -> list[tuple[str, dict[str, str]]]:
    """Return the providers, with options, of a session that computes on `stream`.

    fp32 is fp32: with TF32, CUDA's default, features differ by 2e-3 from those of the training (1.3e-6 without).
    cuDNN's heuristics choose kernels for a new shape in a fraction of the time of a search. `fast` is for much work in
    fp16: channels last and fused biases gave 22,883 images/s instead of 12,077 on an H100, after 13 s of preparation.
    """
    shared = {"device_id": "0", "user_compute_stream": str(stream)}
    own = {"CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}}
    if fast:
        own["CUDAExecutionProvider"] |= {"prefer_nhwc": "1", "fuse_conv_bias": "1"}
    return [(name, shared | own.get(name, {})) for name in DEVICES[device]]


class BoundSession:
    """Calls of a session that has `provider_options`, through the channel that owns its stream.

    `memory` is ONNX Runtime's name of the device where the buffers lie.
    """

    def __init__(self, session: Any, channel: Channel, *, memory: str = "cuda", batch_size: int = BATCH) -> None:
        self._session, self._channel, self._memory, self._batch_size = session, channel, memory, batch_size
        self._bindings: dict[tuple[int, tuple[str, ...]], Any] = {}
        (given,) = session.get_inputs()
        self._input: str = given.name
        for tensor in (given, *session.get_outputs()):
            channel.allocate(tensor.name, (batch_size, *tensor.shape[1:]), _dtype(tensor.type))

    def __del__(self) -> None:
        self.close()

    @property
    def batch_size(self) -> int:
        """Rows of the buffers."""
        return self._batch_size

    @property
    def seconds(self) -> float:
        """GPU time of the last call."""
        return self._channel.seconds

    def close(self) -> None:
        """Release the session, then its buffers and its stream."""
        self._bindings.clear()
        self._session = None
        self._channel.close()

    def run(self, array: NDArray[Any], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs for `array`, as `Session.run` does."""
        return self._channel.run(self._input, array, outputs, partial(self._plan, tuple(outputs)))

    def _plan(self, outputs: tuple[str, ...], rows: int) -> Callable[[], None]:
        """Return the call for so many rows."""
        rows = next((shape for shape in SHAPES if rows <= shape < self._batch_size), self._batch_size)
        key = (rows, outputs)  # behind the rows that were sent the buffer has those of an earlier call
        if key not in self._bindings:
            self._bindings[key] = self._bind(rows, outputs)
        return partial(self._session.run_with_iobinding, self._bindings[key])

    def _bind(self, rows: int, outputs: tuple[str, ...]) -> Any:
        """Return a binding to the first rows of the buffers."""
        binding = self._session.io_binding()
        for name, bind in {self._input: binding.bind_input, **dict.fromkeys(outputs, binding.bind_output)}.items():
            buffer = self._channel.buffers[name]
            shape = (rows, *buffer.host.shape[1:])
            bind(name, self._memory, 0, buffer.host.dtype.type, shape, buffer.device)
        return binding


def _dtype(text: str) -> type[np.generic]:
    """Return the NumPy type of ONNX Runtime's `tensor(uint8)`."""
    name = text.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name)).type
