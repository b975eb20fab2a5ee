"""Runtime formats."""

from __future__ import annotations

from tlkit.plugin.contract import Target
from tlkit_standard.targets.onnx import Onnx

TARGETS: tuple[Target, ...] = (Onnx(),)
