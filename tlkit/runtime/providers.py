"""ONNX Runtime on an NVIDIA GPU, its tensors bound to buffers that are kept. Written without one; never run on a GPU.

Copies go through pinned memory and on the stream that ONNX Runtime computes on, so that a call waits once, at its end.
Calls of one shape are recorded as a CUDA graph where ONNX Runtime can do so, which it can if all nodes run on the GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from tlkit.runtime.cuda import Channel

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 64  # images that there is room for; more of them go through in parts
MOST_GRAPHS = 8  # shapes that are recorded; each keeps memory
NO_GRAPH = -1  # the number that says: don't record this call
NUMBER = "gpu_graph_id"  # the entry of a call's configuration that names its graph
DEVICES = {  # the providers of each device, the first of which has to start
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
GRAPHS = {"CUDAExecutionProvider": "enable_cuda_graph", "TensorrtExecutionProvider": "trt_cuda_graph_enable"}


def providers(device: str, stream: int, *, graphs: bool) -> list[tuple[str, dict[str, str]]]:
    """What a session is to be made with so that it computes on `stream`, and records CUDA graphs if told."""
    first, *others = DEVICES[device]
    shared = {"device_id": "0", "user_compute_stream": str(stream)}
    return [(first, {**shared, GRAPHS[first]: str(int(graphs))}), *((name, dict(shared)) for name in others)]


class Bound:
    """The calls of a session that was made with `providers`, through a channel that has its stream.

    `memory` is where the buffers lie, as ONNX Runtime calls it. One call at a time uses them.
    """

    def __init__(self, session: Any, channel: Channel, *, graphs: bool, memory: str = "cuda") -> None:
        self._session, self._channel, self._graphs, self._memory = session, channel, graphs, memory
        self._one_at_a_time = threading.Lock()
        self._bindings: dict[tuple[int, tuple[str, ...]], Any] = {}
        self._numbers: dict[tuple[int, tuple[str, ...]], int] = {}  # of the graphs of calls that came again
        self.seconds = 0.0  # that the last call took, by the clock of the GPU
        (given,) = session.get_inputs()
        self._input: str = given.name
        for tensor in (given, *session.get_outputs()):
            channel.room(tensor.name, (BATCH, *tensor.shape[1:]), _dtype(tensor.type))

    def __del__(self) -> None:
        self._bindings.clear()
        self._session = None
        self._channel.close()

    def run(self, array: NDArray[Any], wanted: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """As a session's `run`."""
        with self._one_at_a_time:
            self.seconds = 0.0
            parts = [self._part(array[start : start + BATCH], tuple(wanted)) for start in range(0, len(array), BATCH)]
        return {name: np.concatenate([part[name] for part in parts]) for name in wanted}

    def _part(self, array: NDArray[Any], wanted: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
        """At most as many rows as there is room for."""
        key = (len(array), wanted)
        if key not in self._bindings:
            self._bindings[key] = self._bind(*key)
        elif self._graphs and len(self._numbers) < MOST_GRAPHS:
            self._numbers.setdefault(key, 1 + len(self._numbers))
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(NUMBER, str(self._numbers.get(key, NO_GRAPH)))
        compute = partial(self._session.run_with_iobinding, self._bindings[key], options)
        got = self._channel.call(self._input, array, wanted, compute)
        self.seconds += self._channel.seconds
        return got

    def _bind(self, rows: int, wanted: tuple[str, ...]) -> Any:
        """The addresses of so many rows of the buffers."""
        binding = self._session.io_binding()
        for name, bind in {self._input: binding.bind_input, **dict.fromkeys(wanted, binding.bind_output)}.items():
            buffer = self._channel.buffers[name]
            shape = (rows, *buffer.host.shape[1:])
            bind(name, self._memory, 0, buffer.host.dtype.type, shape, buffer.device)
        return binding


def _dtype(text: str) -> type[np.generic]:
    """What ONNX Runtime's `tensor(uint8)` is in NumPy."""
    name = text.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name)).type
