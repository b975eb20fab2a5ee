"""TensorRT: engines for the NVIDIA GPU they are built on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tlkit_standard.targets._nvidia import NvidiaTarget


@dataclass(frozen=True)
class TensorRT(NvidiaTarget):
    name = "tensorrt"
    package = "tensorrt"
    distribution = "tensorrt"

    def machine(self) -> Mapping[str, str]:
        """An engine holds kernels for one kind of GPU."""
        from tlkit_standard.targets._cuda import gpu

        here = gpu()
        return {**super().machine(), "GPU": here.name, "compute capability": here.capability}
