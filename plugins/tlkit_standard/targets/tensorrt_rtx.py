"""TensorRT-RTX: engines for NVIDIA's RTX GPUs, built on any machine and finished on the GPU where they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tlkit.errors import UsageError
from tlkit.plugin.contract import option
from tlkit_standard.targets._nvidia import NvidiaTarget


@dataclass(frozen=True)
class TensorRTRTX(NvidiaTarget):
    """Needs no GPU to build: `--set target.gpu=sm86,sm89` names those it is for."""

    name = "tensorrt-rtx"
    package = "tensorrt_rtx"
    distribution = "tensorrt-rtx-cu13"
    gpu: str | None = option(None, "compute capabilities to build for, as in sm86,sm89; without it, all that are known")

    def configure(self, trt: Any, config: Any) -> None:
        if self.gpu is None:
            return
        known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items()}
        wanted = [name.strip().lower() for name in self.gpu.split(",")]
        unknown = [name for name in wanted if name not in known or name in ("none", "current")]
        if unknown:
            names = ", ".join(sorted(name for name in known if name.startswith("sm")))
            raise UsageError(f"{self.name} knows no GPU {unknown[0]!r}", do=f"choose from {names}")
        config.num_compute_capabilities = len(wanted)
        for index, name in enumerate(wanted):
            config.set_compute_capability(known[name], index)
