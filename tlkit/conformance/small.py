"""Two minimal graphs with everything that an exported classifier has, made without torch."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tlkit.graph import metadata
from tlkit.plugin.contract import BATCH, FEATURES, IMAGES, LOGITS

SIZE, WIDTH, CLASSES = 16, 8, 3
FACTS = {metadata.LABELS: '["a", "b", "c"]', metadata.BUNDLE: "0" * 64}


def images(count: int) -> NDArray[np.uint8]:
    """Return noise, uint8 `(count, S, S, 3)`."""
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def model() -> onnx.ModelProto:
    """Return images to features and logits: cast, normalize, transpose, convolution, ReLU, mean, linear."""
    random = np.random.default_rng(1)
    weights = {
        "mean": np.array([100.0, 120.0, 140.0]),
        "scale": np.array([0.02, 0.015, 0.01]),
        "filters": random.normal(0.0, 0.3, (WIDTH, 3, 3, 3)),
        "offsets": random.normal(0.0, 0.1, WIDTH),
    }
    nodes = [
        helper.make_node("Cast", [IMAGES], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["numbers", "mean"], ["centered"]),
        helper.make_node("Mul", ["centered", "scale"], ["normalized"]),
        helper.make_node("Transpose", ["normalized"], ["input"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["input", "filters", "offsets"], ["map"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["map"], ["active"]),
        helper.make_node("ReduceMean", ["active", "space"], [FEATURES], keepdims=0),
    ]
    outputs = [_value(FEATURES, WIDTH), _value(LOGITS, CLASSES)]
    space = numpy_helper.from_array(np.array([2, 3], np.int64), "space")
    pixels = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [BATCH, SIZE, SIZE, 3])
    return _graph([*nodes, _linear()], [pixels], outputs, [*_constants(weights), space, *_linear_weights()])


def head() -> onnx.ModelProto:
    """Return the graph from features to logits."""
    return _graph([_linear()], [_value(FEATURES, WIDTH)], [_value(LOGITS, CLASSES)], _linear_weights())


def _linear() -> onnx.NodeProto:
    return helper.make_node("Gemm", [FEATURES, "weight", "bias"], [LOGITS], transB=1)


def _linear_weights() -> list[TensorProto]:
    random = np.random.default_rng(2)
    return _constants({"weight": random.normal(size=(CLASSES, WIDTH)), "bias": random.normal(size=CLASSES)})


def _constants(arrays: dict[str, NDArray[np.float64]]) -> list[TensorProto]:
    return [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]


def _value(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, width])


def _graph(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "small", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(made, FACTS)
    return made
