"""TensorRT: engines for the NVIDIA GPU they are built on."""

from __future__ import annotations

from dataclasses import dataclass

from tlkit_standard.targets._nvidia import NvidiaTarget


@dataclass(frozen=True)
class TensorRT(NvidiaTarget):
    name = "tensorrt"
    package = "tensorrt"
    distribution = "tensorrt"
