"""What each layer costs: the noise that the features take on when it alone is quantised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from tlkit.graph.quantize import layers, quantize
from tlkit.plugin.contract import FEATURES
from tlkit.runtime.session import OnnxSession, on_disk

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES_LOOKED_AT = 16


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer, and the noise of the features where it alone is int8: root mean square, as a share of the features'."""

    name: str
    noise: float


def sensitivity(
    graph: onnx.ModelProto,
    ranges: Any,
    images: NDArray[np.uint8],
    tick: Callable[[int], object],
    *,
    flavour: str = "int8",
) -> tuple[Layer, ...]:
    """Every layer of a trunk's graph, the most sensitive first. `tick(1)` is called after each."""
    images = images[:: max(1, len(images) // IMAGES_LOOKED_AT)][:IMAGES_LOOKED_AT]
    expected = _features(graph, images)
    scale = float(np.sqrt(np.square(expected).mean())) or 1.0
    found = []
    for name in layers(graph):
        error = _features(quantize(graph, ranges, flavour=flavour, only=[name]), images) - expected
        found.append(Layer(name, float(np.sqrt(np.square(error).mean())) / scale))
        tick(1)
    return tuple(sorted(found, key=lambda layer: -layer.noise))


def _features(graph: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    with on_disk(graph) as file:
        return OnnxSession(file).run(images, [FEATURES])[FEATURES].astype(np.float64)
