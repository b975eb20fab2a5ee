"""ONNX Runtime's own format as a target of tlkit: graphs that are optimized once, when they are built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tlkit import BuildSource, OptimizationProfile, Progress, Session, Target, hookimpl, option
from tlkit.plugin.support import processor_kind


@dataclass(frozen=True)
class Ort(Target):
    """Files that a minimal build of ONNX Runtime opens as well, without the optimizer and without protobuf."""

    name = "ort"
    suffix = ".ort"
    precisions = ("fp32", "fp16", "int8")
    tuned: bool = option(False, "lay convolutions out for this kind of processor: faster in fp32, but not portable")
    workers: int = option(1, "threads that may run it concurrently, one core each; 1: one call uses all cores")
    threads: int = option(0, "cores per call; 0: by the number of workers")

    def machine(self) -> Mapping[str, str]:
        return {"processor": processor_kind()} if self.tuned else {}

    def build(self, made: BuildSource, out: Path, profile: OptimizationProfile, progress: Progress) -> None:
        """Optimize the graph; the batch is dynamic, so one file serves all shapes."""
        from tlkit_ort.session import convert

        convert(made.graph, out, tuned=self.tuned)

    def open(self, place: Path) -> Session:
        from tlkit_ort.session import OrtSession

        return OrtSession(place, workers=self.workers, threads=self.threads)


@hookimpl
def tlkit_targets() -> Iterable[Target]:
    """Return one target, for the CPU."""
    return [Ort()]
