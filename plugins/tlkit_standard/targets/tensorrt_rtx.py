"""TensorRT-RTX: engines for NVIDIA's RTX GPUs, built on any machine and finished on the GPU where they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlkit.plugin.contract import option
from tlkit.plugin.support import UsageError
from tlkit_standard.targets._nvidia import NvidiaTarget


@dataclass(frozen=True)
class TensorRTRTX(NvidiaTarget):
    """Builds need no GPU: `--gpu sm86,sm89` names the compute capabilities."""

    name = "tensorrt-rtx"
    package = "tensorrt_rtx"
    distribution = "tensorrt-rtx-cu13"
    gpu: str | None = option(None, "compute capabilities to build for, as in sm86,sm89; none: all")

    def configure(self, trt: Any, config: Any) -> None:
        if self.gpu is None:
            return
        known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items()}
        wanted = self._wanted()
        unknown = [name for name in wanted if name not in known or name in ("none", "current")]
        if unknown:
            names = ", ".join(sorted(name for name in known if name.startswith("sm")))
            raise UsageError(f"{self.name} knows no GPU {unknown[0]!r}", do=f"choose from {names}")
        config.num_compute_capabilities = len(wanted)
        for index, name in enumerate(wanted):
            config.set_compute_capability(known[name], index)

    def incompatible(self, recorded: Mapping[str, str]) -> str | None:
        """Require the same version of TensorRT-RTX, and this GPU among those that the engine was built for."""
        why = super().incompatible(recorded)
        if why is not None or self.gpu is None:
            return why
        from tlkit.plugin.support import gpu

        here = gpu()
        kind = f"sm{here.capability.replace('.', '')}"
        if kind in self._wanted():
            return None
        return f"it was built for {self.gpu}, and this machine has {kind} ({here.name})"

    def _wanted(self) -> list[str]:
        """Return the compute capabilities to build for, as in sm86, without duplicates."""
        return list(dict.fromkeys(name.strip().lower() for name in (self.gpu or "").split(",")))
