"""TensorRT: engines for the NVIDIA GPU they are built on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlkit.plugin.contract import option
from tlkit_standard.targets._nvidia import NvidiaTarget


@dataclass(frozen=True)
class TensorRT(NvidiaTarget):
    name = "tensorrt"
    package = "tensorrt"
    distribution = "tensorrt"
    hardware_compatible: bool = option(False, "engines for every GPU from Ampere on, somewhat slower on each")

    def configure(self, trt: Any, config: Any) -> None:
        if self.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def machine(self) -> Mapping[str, str]:
        """An engine holds kernels for one kind of GPU."""
        from tlkit_standard.targets._cuda import gpu

        if self.hardware_compatible:
            return super().machine()
        here = gpu()
        return {**super().machine(), "GPU": here.name, "compute capability": here.capability}
