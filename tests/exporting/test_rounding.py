"""Weights rounded by their inputs: outputs nearer to those of fp32, with pairs that sum exactly everywhere."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.graph.test_processors import LOUD, loud_network
from tlkit.exporting import calibration
from tlkit.exporting.correction import round_weights
from tlkit.graph.quantize import OPERATORS, quantize, summed, weight_scales
from tlkit.plugin.contract import FEATURES, IMAGES

SIZE, WIDTH = 12, 6
PLANES = [
    helper.make_node("Cast", [IMAGES], ["float"], to=onnx.TensorProto.FLOAT),
    helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
]
ROWS = [
    helper.make_node("Cast", [IMAGES], ["float"], to=onnx.TensorProto.FLOAT),
    helper.make_node("Reshape", ["float", "shape"], ["rows"]),
]
KINDS = {
    "convolution": (PLANES, "Conv", (5, WIDTH, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "dilated": (PLANES, "Conv", (5, WIDTH, 3, 2), {"pads": [0, 0, 0, 0], "dilations": [2, 3]}),
    "in groups": (PLANES, "Conv", (4, WIDTH // 2, 3, 3), {"pads": [1, 1, 1, 1], "group": 2}),
    "by channel": (PLANES, "Conv", (WIDTH, 1, 5, 5), {"pads": [2, 2, 2, 2], "group": WIDTH}),
    "over channels": (PLANES, "Conv", (5, WIDTH, 1, 1), {}),
    "product": (ROWS, "MatMul", (WIDTH * SIZE, 5), {}),
    "linear": (ROWS, "Gemm", (WIDTH * SIZE, 5), {}),
    "transposed": (ROWS, "Gemm", (5, WIDTH * SIZE), {"transB": 1}),
}


@pytest.fixture(scope="module")
def images():
    """Images whose neighboring pixels and channels go together."""
    random = np.random.default_rng(3)
    coarse = random.integers(0, 200, (24, SIZE // 4, SIZE // 4, 1))
    smooth = coarse.repeat(4, 1).repeat(4, 2).repeat(WIDTH, 3)
    return (smooth + random.integers(0, 20, smooth.shape)).astype(np.uint8)


def network(kind):
    nodes, operator, shape, settings = KINDS[kind]
    weights = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    constants = {"w": weights, "shape": np.array([-1, WIDTH * SIZE], np.int64)}
    layer = helper.make_node(operator, [nodes[-1].output[0], "w"], [FEATURES], name="layer", **settings)
    graph = helper.make_graph(
        [*nodes, layer],
        kind,
        [helper.make_tensor_value_info(IMAGES, onnx.TensorProto.UINT8, ["batch", SIZE, SIZE, WIDTH])],
        [helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), layer, weights


def with_weights(graph, weights):
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    return changed


def outputs(graph, images):
    return onnx.reference.ReferenceEvaluator(graph).run(None, {IMAGES: images})[0]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_nearer_to_those_of_fp32(kind, images, monkeypatch):
    monkeypatch.setattr("tlkit.graph.quantize.LEVELS", 15)
    monkeypatch.setattr("tlkit.exporting.correction.LEVELS", 15)
    graph, layer, weights = network(kind)
    ticks = []
    levels = round_weights(graph, images[::2], ticks.append)["w"]
    assert levels.shape == weights.shape
    assert np.abs(levels).max() <= 15
    assert sum(ticks) == len(images[::2])
    steps = weight_scales(graph)["w"]
    step = np.array([each["scale"] for each in steps]).reshape(
        [-1 if d == steps[0]["axis"] else 1 for d in range(weights.ndim)]
    )
    others, expected = images[1::2], outputs(graph, images[1::2])
    errors = [
        np.square(outputs(with_weights(graph, (each * step).astype(np.float32)), others) - expected).mean()
        for each in (levels, np.rint(weights / step))
    ]
    assert errors[0] < 0.5 * errors[1]
    _, rows, pairs = summed(layer, levels.astype(np.int64))
    assert pairs == (kind != "by channel")
    if pairs:
        assert np.abs(rows[:, 1:] + rows[:, :-1]).max() <= 16


def test_wide_layers_and_unknown_paddings_are_left_out(images, monkeypatch):
    monkeypatch.setattr("tlkit.exporting.correction.WIDEST", 40)
    for kind, left in (("convolution", False), ("by channel", True), ("linear", False), ("over channels", True)):
        assert bool(round_weights(network(kind)[0], images, lambda _: None)) == left
    graph, *_ = network("over channels")
    graph.graph.node[-1].attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))
    assert not round_weights(graph, images, lambda _: None)


def test_a_layer_whose_inputs_are_too_large_to_multiply_is_left_out(images):
    graph, layer, _ = network("over channels")
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(1e30), "large"))
    graph.graph.node.insert(2, helper.make_node("Mul", [layer.input[0], "large"], ["loud"]))
    graph.graph.node[-1].input[0] = "loud"
    assert not round_weights(graph, images, lambda _: None)


def test_int8_has_the_rounded_weights_and_the_nearest_levels_of_others():
    random = np.random.default_rng(5)
    fp32 = loud_network()
    images = random.integers(0, 256, (16, 16, 16, 3), np.uint8)
    ranges = calibration.ranges(fp32, images, LOUD, OPERATORS)
    rounded = {"w2": random.integers(-99, 99, (32, 1, 3, 3)).astype(np.int8)}
    plain, given = (stored(quantize(fp32, ranges, rounded=each)) for each in (None, rounded))
    assert np.array_equal(given["w2_quantized"], rounded["w2"])
    assert np.array_equal(given["w3_quantized"], plain["w3_quantized"])


def stored(graph):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
