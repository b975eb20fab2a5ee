"""An ONNX graph opened with OpenVINO."""

from __future__ import annotations

import queue
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openvino

from tlkit import Session
from tlkit.plugin.support import ArtifactError, cores, read_graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEVICE = "CPU"
METADATA = "framework"  # where OpenVINO keeps what an ONNX file says of itself
REASON_LENGTH = 200


class OpenVinoSession(Session):
    """OpenVINO on the CPU.

    As with ONNX Runtime: with `workers=1` one call uses all cores; with more, each call uses one core and that many
    threads may call `run` concurrently. `threads` sets the number of cores per call instead.
    """

    def __init__(self, file: Path, *, workers: int = 1, threads: int = 0) -> None:
        content = read_graph(file)  # checked as every graph is; and what was checked is what is compiled
        try:
            core = openvino.Core()
            model = core.read_model(content)
            compiled = core.compile_model(model, DEVICE, _settings(workers, threads))
        except RuntimeError as error:
            raise ArtifactError(f"OpenVINO refuses it: {_reason(error)}", file=file, do="export it again") from error
        self.file = file
        self.workers = workers
        self.input: str = compiled.input(0).get_any_name()
        self.outputs: tuple[str, ...] = tuple(output.get_any_name() for output in compiled.outputs)
        self.metadata: Mapping[str, str] = _metadata(model)
        # A request serves one call at a time; whoever finds none free waits for one.
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(workers):
            self._requests.put(compiled.create_infer_request())

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        request = self._requests.get()
        try:
            results = request.infer({self.input: array})  # copies: the next call leaves them alone
        except (RuntimeError, TypeError) as error:
            raise ArtifactError(f"OpenVINO fails at it: {_reason(error)}", file=self.file) from error
        finally:
            self._requests.put(request)
        return {name: results[name] for name in outputs or self.outputs}


def _settings(workers: int, threads: int) -> dict[str, Any]:
    return {
        # Left to itself it computes in bfloat16 where the processor can, and calls that fp32.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads * workers or (cores() if workers == 1 else workers),
        "NUM_STREAMS": workers,
    }


def _metadata(model: Any) -> dict[str, str]:
    known = model.get_rt_info([METADATA]).value if model.has_rt_info([METADATA]) else {}
    return {name: str(value) for name, value in known.items()}


def _reason(error: Exception) -> str:
    """Return the reason without the places in OpenVINO's source, which come first."""
    lines = [line for line in str(error).splitlines() if not line.startswith(("Exception from ", "Check "))]
    return textwrap.shorten(" ".join(lines), REASON_LENGTH)
