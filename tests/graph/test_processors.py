"""One int8 file is one model on every processor, with VNNI or without."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from tests.kit.processors import KINDS, compiled, environment
from tlkit.exporting import calibration
from tlkit.graph.quantize import FLAVORS, OPERATORS, quantize
from tlkit.plugin.contract import FEATURES, IMAGES, Preprocessing

# Its pairs saturate with 8 bits: all weights of a channel are equal, and so are the pixels.
SIZE, WIDTH = 16, 32
LOUD = Preprocessing(SIZE, mean=(0.0,) * 3, std=(1 / 255,) * 3)
RUN = """
import hashlib, json, sys
import numpy as np, onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], settings, providers=["CPUExecutionProvider"])
images = np.load(sys.argv[2])
print(json.dumps(session.run(["features"], {"images": images})[0].tolist()))
"""


def loud_network():
    """A convolution, one by channel, one over channels and a matrix, all with weights of one sign."""
    random = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array((random.uniform(0.5, 1, shape) / np.prod(shape[1:])).astype(np.float32), name)

    normalize = [
        helper.make_node("Cast", [IMAGES], ["float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "mean"], ["centered"]),
        helper.make_node("Mul", ["centered", "factor"], ["pixels"]),
    ]
    layers = [
        helper.make_node("Conv", ["pixels", "w1"], ["c1"], name="first", **convolution(1)),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="depthwise", **convolution(WIDTH)),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w3"], [FEATURES], name="matrix"),
    ]
    constants = [
        numpy_helper.from_array(np.zeros((3, 1, 1), np.float32), "mean"),
        numpy_helper.from_array(np.ones((3, 1, 1), np.float32), "factor"),
        weight("w1", WIDTH, 3, 3, 3),
        weight("w2", WIDTH, 1, 3, 3),
        weight("w3", WIDTH, 8),
    ]
    graph = helper.make_graph(
        [*normalize, *layers],
        "loud",
        [helper.make_tensor_value_info(IMAGES, onnx.TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, ["batch", 8])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def convolution(groups):
    return {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1], "dilations": [1, 1], "group": groups}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(200, 256, (16, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def fp32():
    return loud_network()


@pytest.fixture(scope="module", params=FLAVORS)
def int8(request, fp32, images):
    found = calibration.ranges(fp32, images, LOUD, OPERATORS)
    return quantize(fp32, found, flavor=request.param)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = compiled(tmp_path_factory.mktemp("processor"))
    if isinstance(made, str):
        pytest.skip(made)
    return made


@pytest.fixture(scope="module")
def files(int8, images, tmp_path_factory):
    place = tmp_path_factory.mktemp("loud")
    onnx.save(int8, place / "int8.onnx")
    np.save(place / "images.npy", images)
    return [str(place / "int8.onnx"), str(place / "images.npy")]


def features(files, env=None):
    ran = subprocess.run([sys.executable, "-c", RUN, *files], env=env, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_same_on_another_processor(library, files, kind):
    assert features(files, environment(library, kind)) == features(files)


def test_they_are_those_of_fp32(fp32, files, images):
    session = onnxruntime.InferenceSession(fp32.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run([FEATURES], {IMAGES: images})[0]
    assert np.allclose(features(files), expected, rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_eight_bits_are_another_model_there(library, fp32, images, files, kind, monkeypatch, tmp_path):
    """The network does saturate there, so the test above can fail."""
    monkeypatch.setattr("tlkit.graph.quantize.weight_scales", lambda *_: {})
    onnx.save(quantize(fp32, calibration.ranges(fp32, images, LOUD, OPERATORS)), tmp_path / "plain.onnx")
    plain = [str(tmp_path / "plain.onnx"), files[1]]
    elsewhere, expected = (np.array(features(files, environment(library, kind))) for files in (plain, files))
    assert np.abs(elsewhere - expected).max() > 0.1 * expected.max()


def test_no_two_neighbors_exceed_a_sixteen_bit_sum(int8):
    stored = {tensor.name: numpy_helper.to_array(tensor).astype(int) for tensor in int8.graph.initializer}
    first, depthwise, matrix = (
        next(array for name, array in stored.items() if name.startswith(f"{weight}_quantized") and array.ndim > 1)
        for weight in ("w1", "w2", "w3")
    )
    rows = {"first": np.moveaxis(first, 1, -1).reshape(len(first), -1), "matrix": matrix.T}
    for sums in (row[:, 1:] + row[:, :-1] for row in rows.values()):
        assert 100 < np.abs(sums).max() <= 128
    assert np.abs(depthwise).max() == 127
