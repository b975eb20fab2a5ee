"""Features of the graphs of a folder for its `images.npy`, as somebody without tlkit gets them: a default session.

python int8_features.py FOLDER NAME [--openvino [PRECISION]]

Writes `<graph>.<NAME>.npy` for each `<graph>.onnx`, in batches of eight. Where the processor has bfloat16, OpenVINO
computes in it what is not int8, unless another precision is given.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def opened(file: Path, openvino: str | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from images to features."""
    if openvino is not None:
        from openvino import Core

        settings = {"INFERENCE_PRECISION_HINT": openvino} if openvino else {}
        compiled: Any = Core().compile_model(str(file), "CPU", settings)
        return lambda images: np.asarray(compiled(images)[0])
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["features"], {"images": images})[0])


parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("name")
parser.add_argument("--openvino", nargs="?", const="", metavar="PRECISION")
args = parser.parse_args()
images = np.load(args.folder / "images.npy")
for file in sorted(args.folder.glob("*.onnx")):
    run = opened(file, args.openvino)
    parts = [run(images[start : start + 8]).copy() for start in range(0, len(images), 8)]
    np.save(args.folder / f"{file.stem}.{args.name}.npy", np.concatenate(parts))
