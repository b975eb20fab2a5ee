"""Candidates of a precision search: int8, int8 with the most sensitive layers in float, fp16, fp32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from tlkit.exporting.calibration import (
    Calibration,
    CalibrationPolicy,
    Layer,
    draw,
    features,
    nearest,
    ranges,
    sensitivity,
)
from tlkit.exporting.correction import correct_biases, round_weights
from tlkit.exporting.head_refit import RefittedHead
from tlkit.graph.quantize import FLAVORS, OPERATORS, layers, quantize
from tlkit.model import exports
from tlkit.model.reference_images import spread
from tlkit.plugin.contract import Progress
from tlkit.util.text import counted
from tlkit.verification.trained import TrainedModules


@dataclass(frozen=True, slots=True)
class SearchPolicy:
    """Limits of a precision search: images, and shares of the layers that int8 leaves in float, rising."""

    max_images: int = 5000  # of the validation split; half a percentage point is 25 of them
    paired_images: int = 1500  # where the validation split has fewer, images of the training split are counted as well
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
    """The candidates of a bundle in rising precision, each made when it is its turn; `fp32` are its trunk and head."""

    def __init__(
        self,
        modules: TrainedModules,
        fp32: tuple[onnx.ModelProto, onnx.ModelProto],
        policy: SearchPolicy,
        data: Path | None,
        progress: Progress,
    ) -> None:
        self.modules, self.policy, self.data, self.progress = modules, policy, data, progress
        self.fp32, self.head = fp32
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
        rows = spread(range(len(images)), policy.correction_images)
        some, others = images[rows], np.delete(images, rows, axis=0)
        others = others if len(others) else some
        expected = features(self.fp32, others)
        count = len(layers(self.fp32))
        rounded = round_weights(self.fp32, some, self.progress("weight rounding", len(some)))

        def made(kept: tuple[Layer, ...]) -> Candidate:
            keep = [layer.node for layer in kept]
            tick = self.progress("bias correction", count)
            corrected = correct_biases(self.fp32, found, some, tick, flavor=flavor, keep=keep, rounded=rounded)
            either = [
                quantize(biases, found, flavor=flavor, keep=keep, rounded=rounded) for biases in (corrected, self.fp32)
            ]
            trunk = nearest(expected, either, others)
            return Candidate(flavor, trunk, tuple(layer.name for layer in kept))

        yield made(())
        few = np.stack(spread(list(images), policy.sensitivity_images))
        tick = self.progress("layer sensitivity", count)
        self.sensitivity = sensitivity(self.fp32, self.head, found, few, tick, flavor, rounded)
        for most in sorted({math.ceil(share * count) for share in self.policy.float_shares}):
            yield made(self.sensitivity[:most])
