"""An engine of TensorRT or TensorRT-RTX, opened on the GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.errors import ArtifactError
from tlkit.plugin.contract import Session
from tlkit.runtime.cuda import Channel, Replayed, gpu, runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRAPHS = 3  # sizes that are replayed; each takes a context with memory of its own
AGAIN = "build it again on this machine"


class EngineSession(Session):
    """One array in, named arrays out; a larger batch than the engine was built for goes through in parts.

    One call at a time uses the GPU: its buffers are allocated once, for the largest batch. Calls of a size that came
    before are replayed as a CUDA graph: of the largest, in which many images go through, and of the first few others.
    Never run on a GPU so far.
    """

    def __init__(self, trt: Any, log: Any, file: Path) -> None:
        gpu()
        cuda = runtime()
        loader = trt.Runtime(log)
        # A version-compatible engine brings the runtime that reads it. Whose engine it is was asked before this.
        loader.engine_host_code_allowed = True
        engine = loader.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise ArtifactError(f"it can't be loaded: {log.worst or 'no reason given'}", file=file, do=AGAIN)
        self.file = file
        self._loader, self._engine = loader, engine  # the contexts need them as long as they live
        self._one_at_a_time = threading.Lock()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        (self.input,) = inputs
        self.outputs = tuple(name for name in names if name != self.input)
        self.batch_size = int(engine.get_tensor_profile_shape(self.input, 0)[2][0])
        self.metadata: Mapping[str, str] = {}
        self._channel = Channel(cuda)
        for name in names:
            rest = tuple(engine.get_tensor_shape(name))[1:]
            self._channel.room(name, (self.batch_size, *rest), trt.nptype(engine.get_tensor_dtype(name)))
        self._context = self._make_context()
        self._fixed: dict[int, Replayed] = {}
        self._replayed = partial(Replayed, cuda, self._channel.stream)

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        wanted = list(outputs or self.outputs)
        with self._one_at_a_time:
            self.gpu_seconds = 0.0
            parts = [
                self._part(array[start : start + self.batch_size], wanted)
                for start in range(0, len(array), self.batch_size)
            ]
        return {name: np.concatenate([part[name] for part in parts]) for name in wanted}

    def _part(self, array: NDArray[Any], wanted: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """At most as many rows as there is room for."""
        rows = len(array)
        compute: Callable[[], None]
        if rows in self._fixed or rows == self.batch_size or len(self._fixed) < GRAPHS:
            if rows not in self._fixed:
                self._fixed[rows] = self._fix(array.shape)
            compute = self._fixed[rows]
        else:
            self._context.set_input_shape(self.input, array.shape)
            compute = partial(_execute, self._context, self._channel.stream, self.file)
        got = self._channel.call(self.input, array, wanted, compute)
        self.gpu_seconds = (self.gpu_seconds or 0.0) + self._channel.seconds
        return got

    def _fix(self, shape: tuple[int, ...]) -> Replayed:
        """The work on one shape, in a context of its own: a graph is void once its context sees another."""
        context = self._make_context()
        context.set_input_shape(self.input, shape)
        return self._replayed(partial(_execute, context, self._channel.stream, self.file))

    def _make_context(self) -> Any:
        context = self._engine.create_execution_context()
        for name, buffer in self._channel.buffers.items():
            context.set_tensor_address(name, buffer.device)
        return context

    def __del__(self) -> None:
        for replayed in getattr(self, "_fixed", {}).values():
            replayed.close()
        if (channel := getattr(self, "_channel", None)) is not None:
            channel.close()


def _execute(context: Any, stream: Any, file: Path) -> None:
    """Begin the work of a context. No method of the session, which would then live as long as what it has recorded."""
    if not context.execute_async_v3(int(stream)):
        raise ArtifactError("the engine fails at it", file=file, do=AGAIN)
