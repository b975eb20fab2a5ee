"""An engine of TensorRT or TensorRT-RTX, opened on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.plugin.contract import Session
from tlkit.plugin.support import ArtifactError, CapturedGraph, Channel, cuda_runtime, gpu

MAX_GRAPHS = 3  # batch sizes that are captured; each takes a context with memory of its own
AGAIN = "build it again on this machine"


class EngineSession(Session):
    """One array in, named arrays out; a larger batch than the engine was built for runs in parts.

    Repeated batch sizes are captured as CUDA graphs: the largest, which most images go through, and the first few
    others.
    """

    def __init__(self, trt: Any, log: Any, file: Path) -> None:
        gpu()
        cuda = cuda_runtime()
        loader = trt.Runtime(log)
        # A version-compatible engine brings the runtime that reads it. Whose engine it is was asked before this.
        loader.engine_host_code_allowed = True
        engine = loader.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise ArtifactError(f"it can't be loaded: {log.worst or 'no reason given'}", file=file, do=AGAIN)
        self.file = file
        self._loader, self._engine = loader, engine  # the contexts need them as long as they live
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        (self.input,) = inputs
        self.outputs = tuple(name for name in names if name != self.input)
        self.batch_size = int(engine.get_tensor_profile_shape(self.input, 0)[2][0])
        self.metadata: Mapping[str, str] = {}
        self._channel = Channel(cuda)
        for name in names:
            rest = tuple(engine.get_tensor_shape(name))[1:]
            self._channel.allocate(name, (self.batch_size, *rest), trt.nptype(engine.get_tensor_dtype(name)))
        self._context = self._make_context()
        self._captured: dict[int, CapturedGraph] = {}
        self._capture = partial(CapturedGraph, cuda, self._channel.stream)

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        arrays = self._channel.run(self.input, array, list(outputs or self.outputs), self._plan)
        self.gpu_seconds = self._channel.seconds
        return arrays

    def _plan(self, rows: int) -> Callable[[], None]:
        """Return the work for so many rows."""
        shape = (rows, *self._channel.buffers[self.input].host.shape[1:])
        if rows in self._captured or rows == self.batch_size or len(self._captured) < MAX_GRAPHS:
            if rows not in self._captured:
                # In a context of its own: a graph is invalid once its context gets another shape.
                self._captured[rows] = self._capture(self._work(self._make_context(), shape))
            return self._captured[rows]
        return self._work(self._context, shape)

    def _work(self, context: Any, shape: tuple[int, ...]) -> Callable[[], None]:
        context.set_input_shape(self.input, shape)
        return partial(_execute, context, self._channel.stream, self.file)

    def _make_context(self) -> Any:
        context = self._engine.create_execution_context()
        for name, buffer in self._channel.buffers.items():
            context.set_tensor_address(name, buffer.device)
        return context

    def close(self) -> None:
        for captured in getattr(self, "_captured", {}).values():
            captured.close()
        if (channel := getattr(self, "_channel", None)) is not None:
            channel.close()

    __del__ = close


def _execute(context: Any, stream: Any, file: Path) -> None:
    """Start the work of a context. A method of the session would keep it alive as long as what it captured."""
    if not context.execute_async_v3(int(stream)):
        raise ArtifactError("the engine fails", file=file, do=AGAIN)
