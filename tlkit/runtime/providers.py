"""ONNX Runtime on an NVIDIA GPU, with its tensors bound to persistent buffers.

Copies go through pinned memory and on the stream that ONNX Runtime computes on, so that a call waits once, at its end.
Calls of one shape are captured as a CUDA graph if all nodes run on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tlkit.runtime.cuda import Channel

BATCH = 64  # rows of the buffers; larger batches run in parts
MAX_GRAPHS = 8  # shapes that are captured; each keeps memory
NO_GRAPH = -1  # the graph id of a call that is not captured
GRAPH_ID = "gpu_graph_id"  # the entry of a call's configuration
DEVICES = {  # the providers of each device, the first of which has to start
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
GRAPH_OPTIONS = {"CUDAExecutionProvider": "enable_cuda_graph", "TensorrtExecutionProvider": "trt_cuda_graph_enable"}


def provider_options(device: str, stream: int, *, graphs: bool) -> list[tuple[str, dict[str, str]]]:
    """Return the providers, with options, of a session that computes on `stream` and captures CUDA graphs if set."""
    first, *others = DEVICES[device]
    shared = {"device_id": "0", "user_compute_stream": str(stream)}
    return [(first, {**shared, GRAPH_OPTIONS[first]: str(int(graphs))}), *((name, dict(shared)) for name in others)]


class BoundSession:
    """Calls of a session that has `provider_options`, through the channel that owns its stream.

    `memory` is ONNX Runtime's name of the device where the buffers lie.
    """

    def __init__(
        self, session: Any, channel: Channel, *, graphs: bool, memory: str = "cuda", batch_size: int = BATCH
    ) -> None:
        self._session, self._channel, self._graphs, self._memory = session, channel, graphs, memory
        self._bindings: dict[tuple[int, tuple[str, ...]], Any] = {}
        self._graph_ids: dict[tuple[int, tuple[str, ...]], int] = {}  # of calls that were repeated
        (given,) = session.get_inputs()
        self._input: str = given.name
        for tensor in (given, *session.get_outputs()):
            channel.allocate(tensor.name, (batch_size, *tensor.shape[1:]), _dtype(tensor.type))

    def __del__(self) -> None:
        self.close()

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
        """Return the call for so many rows; it is captured when it is repeated."""
        key = (rows, outputs)
        if key not in self._bindings:
            self._bindings[key] = self._bind(rows, outputs)
        elif self._graphs and len(self._graph_ids) < MAX_GRAPHS:
            self._graph_ids.setdefault(key, 1 + len(self._graph_ids))
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(GRAPH_ID, str(self._graph_ids.get(key, NO_GRAPH)))
        return partial(self._session.run_with_iobinding, self._bindings[key], options)

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
