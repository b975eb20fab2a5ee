"""Runtime formats."""

from __future__ import annotations

from tlkit.plugin.contract import Target
from tlkit_standard.targets.onnx import Onnx
from tlkit_standard.targets.tensorrt import TensorRT
from tlkit_standard.targets.tensorrt_rtx import TensorRTRTX

TARGETS: tuple[Target, ...] = (Onnx(), TensorRT(), TensorRTRTX())
