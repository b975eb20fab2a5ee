"""ONNX, run by ONNX Runtime: other targets build from its graphs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tlkit.plugin.contract import BuildSource, OptimizationProfile, Progress, Session, Target, option


@dataclass(frozen=True)
class Onnx(Target):
    name = "onnx"
    suffix = ".onnx"
    precisions = ("fp32", "fp16", "int8")
    workers: int = option(1, "threads that may run it concurrently, one core each; 1: one call uses all cores")
    threads: int = option(0, "cores per call; 0: by the number of workers")
    device: str = option("cpu", "device; a GPU needs tlkit[gpu]", choices=("cpu", "cuda", "tensorrt"))

    def build(self, made: BuildSource, out: Path, profile: OptimizationProfile, progress: Progress) -> None:
        shutil.copyfile(made.graph, out)  # the batch is dynamic: one file serves all shapes

    def open(self, place: Path) -> Session:
        from tlkit.plugin.support import OnnxSession

        return OnnxSession(place, workers=self.workers, threads=self.threads, device=self.device)
