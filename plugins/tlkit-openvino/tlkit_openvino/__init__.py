"""OpenVINO as a target of tlkit: the same ONNX file, run by another runtime."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tlkit import BuildSource, OptimizationProfile, Progress, ResourceError, Session, Target, hookimpl, option
from tlkit.plugin.support import translate_os_errors

# OpenVINO does without this package, which writes below the home and sends to Google, where it can't be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class OpenVino(Target):
    """Its files are ONNX: OpenVINO reads that as well as its own format, which would take two files for each graph."""

    name = "openvino"
    suffix = ".onnx"
    precisions = ("fp32", "fp16", "int8")
    workers: int = option(1, "threads that may run it concurrently, one core each; 1: one call uses all cores")
    threads: int = option(0, "cores per call; 0: by the number of workers")

    def missing(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return 'OpenVINO is not installed; run: pip install "openvino>=2024.6"'
        return None

    def build(self, made: BuildSource, out: Path, profile: OptimizationProfile, progress: Progress) -> None:
        """Copy the graph after OpenVINO has compiled it: graphs that it can't run are refused here."""
        self.open(made.graph)
        with translate_os_errors(out):
            shutil.copyfile(made.graph, out)  # the batch is dynamic: one file serves all shapes

    def open(self, place: Path) -> Session:
        if (why := self.missing()) is not None:
            raise ResourceError(why)
        from tlkit_openvino.session import OpenVinoSession

        return OpenVinoSession(place, workers=self.workers, threads=self.threads)


@hookimpl
def tlkit_targets() -> Iterable[Target]:
    """Return one target, for the CPU."""
    return [OpenVino()]
