"""Conversion to ONNX Runtime's own format, and sessions of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

from tlkit import Session
from tlkit.plugin.support import ArtifactError, DataError, cores, quiet_options, read_graph, translate_os_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = slice(4, 8), b"ORTM"  # the identifier of the flatbuffer
CPU = ["CPUExecutionProvider"]
# Its blocks are as wide as the registers of the processor that optimizes.
FOR_THIS_PROCESSOR = "NchwcTransformer"


def convert(graph: Path, out: Path, *, tuned: bool) -> None:
    """Write the optimized form of an ONNX file; unless `tuned`, without layouts for this kind of processor."""
    options = quiet_options(cores())
    options.optimized_model_filepath = str(out)
    options.add_session_config_entry("session.save_model_format", "ORT")
    disabled = [] if tuned else [FOR_THIS_PROCESSOR]
    with translate_os_errors(out):
        _start(read_graph(graph), options, graph, disabled_optimizers=disabled)


class OrtSession(Session):
    """ONNX Runtime on the CPU, with a file of its own format.

    As with ONNX files: with `workers=1` one call uses all cores; with more, each call uses one core and that many
    threads may call `run` concurrently. `threads` sets the number of cores per call instead.
    """

    batch_size = 2

    def __init__(self, file: Path, *, workers: int = 1, threads: int = 0) -> None:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"can't be read: {error.strerror}", file=file) from error
        where, magic = MAGIC
        if content[where] != magic:  # otherwise ONNX Runtime would take it for an ONNX file
            raise ArtifactError("not in ONNX Runtime's own format", file=file, do="export it again")
        options = quiet_options(threads or (cores() if workers == 1 else 1))
        options.add_session_config_entry("session.load_model_format", "ORT")
        self.file, self.workers = file, workers
        self._session = _start(content, options, file)
        self.input: str = self._session.get_inputs()[0].name
        self.outputs: tuple[str, ...] = tuple(output.name for output in self._session.get_outputs())
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        names = list(outputs or self.outputs)
        try:
            return dict(zip(names, self._session.run(names, {self.input: array}), strict=True))
        except Exception as error:  # see `_start`
            raise ArtifactError(f"ONNX Runtime fails: {error}", file=self.file, do="export it again") from error


def _start(content: bytes, options: Any, file: Path, **more: Any) -> Any:
    try:
        return onnxruntime.InferenceSession(content, options, providers=CPU, enable_fallback=0, **more)
    except Exception as error:  # onnxruntime has an exception class for each status, with no common base
        raise ArtifactError(f"ONNX Runtime refuses it: {error}", file=file, do="export it again") from error
