"""TensorRT-RTX: engines for NVIDIA's RTX GPUs, built on any machine and finished on the GPU where they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlkit.plugin.contract import option
from tlkit.plugin.support import ResourceError, UsageError
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
        known, wanted = _capabilities(trt), self._wanted()
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise UsageError(f"{self.name} knows no GPU {unknown[0]!r}", do=f"choose from {', '.join(sorted(known))}")
        config.num_compute_capabilities = len(wanted)
        for index, name in enumerate(wanted):
            config.set_compute_capability(known[name], index)

    def incompatible(self, recorded: Mapping[str, str]) -> str | None:
        """Require the same version of TensorRT-RTX, a GPU that it has kernels for, and the engine built for that."""
        if (why := super().incompatible(recorded)) is not None:
            return why
        from tlkit.plugin.support import gpu

        try:
            here = gpu()
        except ResourceError:
            if self.gpu is None:
                return None  # opening it says what is missing
            raise
        kind = f"sm{here.capability.replace('.', '')}"
        known = _capabilities(self._library())
        if kind not in known:
            return f"{self.name} has no kernels for {kind} ({here.name}), only for {', '.join(sorted(known))}"
        if self.gpu is None or kind in self._wanted():
            return None
        return f"it was built for {self.gpu}, and this machine has {kind} ({here.name})"

    def _wanted(self) -> list[str]:
        """Return the compute capabilities to build for, as in sm86, without duplicates."""
        return list(dict.fromkeys(name.strip().lower() for name in (self.gpu or "").split(",")))


def _capabilities(trt: Any) -> dict[str, Any]:
    """Return the compute capabilities that the library has kernels for, as in sm86."""
    members = trt.ComputeCapability.__members__.items()
    return {name.lower(): value for name, value in members if name.startswith("SM")}
