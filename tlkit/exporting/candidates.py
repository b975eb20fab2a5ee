"""Candidates of a precision search: int8, int8 with the most sensitive layers in float, fp16, fp32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from tlkit.exporting.calibration import Calibration, CalibrationPolicy, Layer, draw, ranges, sensitivity
from tlkit.exporting.head_refit import RefittedHead
from tlkit.graph.quantize import FLAVORS, OPERATORS, layers, quantize
from tlkit.model import exports
from tlkit.plugin.contract import Progress
from tlkit.util.text import counted
from tlkit.verification.trained import TrainedModules


@dataclass(frozen=True, slots=True)
class SearchPolicy:
    """Limits of a precision search: validation images, and shares of the layers that int8 leaves in float, rising."""

    max_images: int = 5000  # half a percentage point is 25 of them
    float_shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    calibration: CalibrationPolicy = field(default_factory=CalibrationPolicy)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trunk to try; `kept` names the layers that int8 leaves in float. `head` replaces the bundle's, if any."""

    precision: str
    trunk: onnx.ModelProto
    kept: tuple[str, ...] = ()
    head: RefittedHead | None = None

    @property
    def name(self) -> str:
        """The precision and the number of layers in float, for tables."""
        return self.precision + (f", {counted(len(self.kept), 'layer')} in float" if self.kept else "")


class Candidates:
    """The candidates of a bundle in rising precision, each made when it is its turn; `fp32` is the trunk's graph."""

    def __init__(
        self,
        modules: TrainedModules,
        fp32: onnx.ModelProto,
        policy: SearchPolicy,
        data: Path | None,
        progress: Progress,
    ) -> None:
        self.modules, self.fp32, self.policy, self.data, self.progress = modules, fp32, policy, data, progress
        self.calibration: Calibration | None = None
        self.sensitivity: tuple[Layer, ...] = ()

    def starting_at(self, precision: str, *, fallback: bool) -> Iterator[Candidate]:
        """Yield those of a precision, be it int8 in either flavor, and with `fallback` of every higher one."""
        if precision in FLAVORS:
            yield from self._int8(precision)
        rest = ("fp16", "fp32") if precision in FLAVORS else exports.PRECISIONS[exports.PRECISIONS.index(precision) :]
        for name in rest if fallback else {precision} - set(FLAVORS):
            yield Candidate(name, self.modules.half_trunk_graph() if name == "fp16" else self.fp32)

    def _int8(self, flavor: str) -> Iterator[Candidate]:
        bundle, policy = self.modules.bundle, self.policy.calibration
        self.calibration = draw(bundle, self.data, policy)
        images = self.calibration.images
        found = ranges(self.fp32, images, bundle.record.preprocessing, OPERATORS)
        yield Candidate(flavor, quantize(self.fp32, found, flavor=flavor))
        count = len(layers(self.fp32))
        tick = self.progress("layer sensitivity", count)
        self.sensitivity = sensitivity(self.fp32, found, images, tick, flavor, policy.sensitivity_images)
        for most in sorted({math.ceil(share * count) for share in self.policy.float_shares}):
            kept = self.sensitivity[:most]
            trunk = quantize(self.fp32, found, flavor=flavor, keep=[layer.node for layer in kept])
            yield Candidate(flavor, trunk, tuple(layer.name for layer in kept))
