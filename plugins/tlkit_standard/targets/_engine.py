"""An engine of TensorRT or TensorRT-RTX, opened on the GPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.errors import ArtefactError
from tlkit.plugin.contract import Session
from tlkit_standard.targets._cuda import Buffer, checked, gpu, runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray


class EngineSession(Session):
    """One array in, named arrays out; a larger batch than the engine was built for goes through in parts.

    One call at a time uses the GPU: its buffers are allocated once, for the largest batch.
    """

    def __init__(self, trt: Any, log: Any, file: Path) -> None:
        gpu()
        cuda = self._cuda = runtime()
        loader = trt.Runtime(log)
        engine = loader.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            what = f"it can't be loaded: {log.worst or 'no reason given'}"
            raise ArtefactError(what, file=file, do="build it again on this machine")
        self._loader, self._engine = loader, engine  # the context needs them as long as it lives
        self._context = engine.create_execution_context()
        self._stream = checked(cuda, cuda.cudaStreamCreate())
        self._one_at_a_time = threading.Lock()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        (self.input,) = inputs
        self.outputs = tuple(name for name in names if name != self.input)
        self.batch = int(engine.get_tensor_profile_shape(self.input, 0)[2][0])
        self.metadata: Mapping[str, str] = {}
        self._buffers = {
            name: Buffer(
                cuda, (self.batch, *tuple(engine.get_tensor_shape(name))[1:]), trt.nptype(engine.get_tensor_dtype(name))
            )
            for name in names
        }
        for name, buffer in self._buffers.items():
            self._context.set_tensor_address(name, buffer.device)

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        wanted = list(outputs or self.outputs)
        with self._one_at_a_time:
            parts = [
                self._part(array[start : start + self.batch], wanted) for start in range(0, len(array), self.batch)
            ]
        return {name: np.concatenate([part[name] for part in parts]) for name in wanted}

    def _part(self, array: NDArray[Any], wanted: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """At most as many rows as there is room for."""
        self._context.set_input_shape(self.input, array.shape)
        self._buffers[self.input].send(array, self._stream)
        if not self._context.execute_async_v3(int(self._stream)):
            raise ArtefactError("the engine fails at it", do="build it again on this machine")
        for name in wanted:
            self._buffers[name].fetch(len(array), self._stream)
        checked(self._cuda, self._cuda.cudaStreamSynchronize(self._stream))
        return {name: self._buffers[name].host[: len(array)].astype(np.float32) for name in wanted}

    def __del__(self) -> None:
        for buffer in getattr(self, "_buffers", {}).values():
            buffer.free()
