"""Calibration of int8: images of the training split, the range of every tensor over them, and layer sensitivity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import CalibrationDataReader, TensorData, create_calibrator

from tlkit.errors import DataError
from tlkit.graph import layout
from tlkit.graph.quantize import layer_names, layers, quantize
from tlkit.model import reference_images
from tlkit.model.bundle import Bundle
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, Preprocessing
from tlkit.runtime.session import OnnxSession, on_disk
from tlkit.util.files import temporary_dir

BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class CalibrationPolicy:
    """Numbers of images: more change the ranges hardly, fewer leave them to chance. Sensitivity needs the fewest."""

    max_images: int = 128
    min_images: int = 16
    correction_images: int = 64
    sensitivity_images: int = 16


@dataclass(frozen=True, slots=True)
class Calibration:
    """Images `(N, S, S, 3)` of the training split with their names, and the dataset that they come from."""

    names: tuple[str, ...]
    images: NDArray[np.uint8]
    drawn_from: str

    def to_json(self) -> dict[str, Any]:
        """Return everything but the pixels as JSON values."""
        return {"from": self.drawn_from, "images": list(self.names)}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer by stage and operator, and its sensitivity: RMS error of the logits, relative to their deviation.

    The error is that of a trunk in which this layer alone is int8, without what all images have in common, which
    `correct_biases` undoes. `node` is the layer's name in the graph.
    """

    name: str
    node: str
    error: float


def draw(bundle: Bundle, data: Path | None = None, policy: CalibrationPolicy | None = None) -> Calibration:
    """Return evenly spaced images of the training split, the same ones every time; unreadable ones are skipped."""
    policy = policy or CalibrationPolicy()
    place, dataset = reference_images.dataset(bundle, data)
    names, images = reference_images.load_spread(bundle, dataset.of("train"), policy.max_images)
    if len(images) < policy.min_images:
        what = f"{len(images)} images to calibrate int8 on in its training split, at least {policy.min_images} needed"
        raise DataError(what, file=place, do="name a larger folder with --data, or choose --precision fp16")
    return Calibration(tuple(names), np.stack(images), f"the training split of {place.absolute().name}")


def ranges(
    graph: onnx.ModelProto, images: NDArray[np.uint8], preprocessing: Preprocessing, operators: tuple[str, ...]
) -> Any:
    """Return the smallest and largest value of every tensor at the `operators` of a graph, as `quantize` takes them."""
    with on_disk(graph) as file, temporary_dir() as temporary:
        observed = Path(temporary, "observed.onnx")
        calibrator = create_calibrator(file, list(operators), augmented_model_path=str(observed))
        calibrator.collect_data(_Batches(images))
        found = calibrator.compute_data()
        del calibrator  # it holds its files open
    if (name := normalized(graph)) in found:
        low, high = pixel_range(preprocessing)
        found[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
    return found


def sensitivity(
    graph: onnx.ModelProto,
    head: onnx.ModelProto,
    found: Any,
    images: NDArray[np.uint8],
    tick: Callable[[int], object],
    flavor: str,
    rounded: Mapping[str, NDArray[np.int8]] | None = None,
) -> tuple[Layer, ...]:
    """Return every layer of a trunk's graph with its sensitivity over images, the most sensitive first.

    `found` are the `ranges`, `rounded` the weights of `correction.round_weights`; `tick(1)` is called after each layer.
    """
    names, measured = layer_names(graph), []
    with on_disk(head) as file:
        session = OnnxSession(file)

        def centered(trunk: onnx.ModelProto) -> NDArray[np.float64]:
            logits = session.run(features(trunk, images), [LOGITS])[LOGITS].astype(np.float64)
            result: NDArray[np.float64] = logits - logits.mean(0)
            return result

        expected = centered(graph)
        scale = float(np.sqrt(np.square(expected).mean())) or 1.0
        for node in layers(graph):
            error = centered(quantize(graph, found, flavor=flavor, only=[node], rounded=rounded)) - expected
            measured.append(Layer(names[node], node, float(np.sqrt(np.square(error).mean())) / scale))
            tick(1)
    return tuple(sorted(measured, key=lambda layer: -layer.error))


def nearest(
    expected: NDArray[np.float32], trunks: Sequence[onnx.ModelProto], images: NDArray[np.uint8]
) -> onnx.ModelProto:
    """Return the first of the trunks whose features of images differ least from those expected, by mean square."""
    return min(trunks, key=lambda trunk: float(np.square(features(trunk, images).astype(np.float64) - expected).mean()))


def normalized(graph: onnx.ModelProto) -> str:
    """Return the tensor of normalized images: the input of the first operator that does not normalize."""
    name, steps = IMAGES, ("Cast", "Transpose", "Sub", "Mul", "Add", "Div")
    while True:
        readers = layout.readers(graph.graph, name)
        if len(readers) != 1 or readers[0].op_type not in steps:
            return name
        name = readers[0].output[0]


def pixel_range(preprocessing: Preprocessing) -> tuple[float, float]:
    """Return the normalized values of pixels 0 and 255: known, so no darker image is clipped."""
    low = min(-mean / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True))
    high = max((1 - mean) / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True))
    return low, high


def features(graph: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what a trunk's graph gives for images, `(N, width)`."""
    with on_disk(graph) as file:
        return OnnxSession(file).run(images, [FEATURES])[FEATURES]


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Hands the images to ONNX Runtime, batch by batch."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        starts = range(0, len(images), BATCH_SIZE)
        self._batches = iter([{IMAGES: images[start : start + BATCH_SIZE]} for start in starts])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._batches, None)
