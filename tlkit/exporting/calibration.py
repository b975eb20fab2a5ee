"""Which values flow through a graph: the images that are looked at, and the range of every tensor over them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnxruntime.quantization.calibrate import CalibrationDataReader, TensorData, create_calibrator

from tlkit.data.preprocessing import UnreadableImage, load
from tlkit.errors import DataError
from tlkit.model import reference_images
from tlkit.model.bundle import Bundle
from tlkit.plugin.contract import IMAGES, Preprocessing
from tlkit.runtime.session import on_disk

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST, LEAST = 128, 16  # images: more change the ranges hardly, fewer leave them to chance
BATCH = 8


@dataclass(frozen=True, slots=True)
class Calibration:
    """Images `(N, S, S, 3)` of the training split with their names, and where they were drawn from."""

    names: tuple[str, ...]
    images: NDArray[np.uint8]
    drawn_from: str

    def to_json(self) -> dict[str, Any]:
        """All but the pixels, as JSON knows it."""
        return {"from": self.drawn_from, "images": list(self.names)}


def draw(bundle: Bundle, data: Path | None = None) -> Calibration:
    """Evenly spaced images of the training split, the same ones every time; what can't be used is passed over."""
    place, dataset = reference_images.dataset(bundle, data)
    names, images = [], []
    for sample in reference_images.spread(dataset.of("train"), MOST):
        try:
            images.append(load(sample.path, bundle.record.preprocessing))
        except UnreadableImage:
            continue
        names.append(sample.name)
    if len(images) < LEAST:
        what = f"{len(images)} images to calibrate int8 on in its training split, and at least {LEAST} are needed"
        raise DataError(what, file=place, do="name a larger folder with --data, or choose --precision fp16")
    return Calibration(tuple(names), np.stack(images), f"the training split of {place.absolute().name}")


def ranges(
    graph: onnx.ModelProto, images: NDArray[np.uint8], preprocessing: Preprocessing, operators: tuple[str, ...]
) -> Any:
    """The least and the greatest value of every tensor at the `operators` of a graph, as `quantise` takes them."""
    with on_disk(graph) as file, tempfile.TemporaryDirectory(prefix="tlkit-") as temporary:
        observed = Path(temporary, "observed.onnx")
        calibrator = create_calibrator(file, list(operators), augmented_model_path=str(observed))
        calibrator.collect_data(_Batches(images))
        found = calibrator.compute_data()
        del calibrator  # it holds its files open
    if (name := normalized(graph)) in found:
        low, high = pixel_range(preprocessing)
        found[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
    return found


def normalized(graph: onnx.ModelProto) -> str:
    """The tensor that the normalised images are: what the first operator reads that is no part of normalising."""
    name, steps = IMAGES, ("Cast", "Transpose", "Sub", "Mul", "Add", "Div")
    while True:
        readers = [node for node in graph.graph.node if name in node.input]
        if len(readers) != 1 or readers[0].op_type not in steps:
            return name
        name = readers[0].output[0]


def pixel_range(preprocessing: Preprocessing) -> tuple[float, float]:
    """What pixels of 0 and 255 become: known, not measured, so no picture is cut off that is darker than the others."""
    low = min(-mean / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True))
    high = max((1 - mean) / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True))
    return low, high


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Hands the images to ONNX Runtime, some at a time."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._batches: Iterator[NDArray[np.uint8]] = iter(
            images[start : start + BATCH] for start in range(0, len(images), BATCH)
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next ones, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {IMAGES: batch}
