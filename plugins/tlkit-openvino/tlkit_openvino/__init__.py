"""OpenVINO as a target of tlkit: the same ONNX file, run by another runtime."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tlkit import Session, Target, hookimpl, option
from tlkit.errors import ResourceError
from tlkit.plugin.contract import OptimizationProfile
from tlkit.util.files import translate_os_errors


@dataclass(frozen=True)
class OpenVino(Target):
    """Its files are ONNX: OpenVINO reads that as well as its own format, which would take two files for each graph."""

    name = "openvino"
    suffix = ".onnx"
    precisions = ("fp32", "fp16", "int8")
    workers: int = option(1, "threads that may run it at once, one core each; 1 gives one call all cores")

    threads: int = option(0, "cores that one call uses; 0 leaves it to the number of workers")

    def missing(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return 'OpenVINO is not installed; run: pip install "openvino>=2024.6"'
        return None

    def build(self, graph: Path, out: Path, profile: OptimizationProfile) -> None:
        """Copy the graph, once OpenVINO has compiled it: what it can't run is refused here and not in production."""
        self.open(graph)
        with translate_os_errors(out):
            shutil.copyfile(graph, out)  # the batch is dynamic: one file serves all shapes

    def open(self, file: Path) -> Session:
        if (why := self.missing()) is not None:
            raise ResourceError(why)
        from tlkit_openvino.session import OpenVinoSession

        return OpenVinoSession(file, workers=self.workers, threads=self.threads)


@hookimpl
def tlkit_targets() -> Iterable[Target]:
    """One target, for the CPU."""
    return [OpenVino()]
