"""Evidence maps: for an affine head that of CAM up to a constant, for others still what the logit loses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tlkit.plugin.contract import IMAGES, LOGITS, PROBABILITIES
from tlkit.runtime.evidence import LEFT_OUT, MAPS, OCCLUSION, Evidence, overlay, taken_apart
from tlkit.runtime.model import Model


@pytest.fixture(scope="module")
def model(tiny_run):
    with Model.open(tiny_run) as opened:
        yield opened


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def weights(graph):
    """The weights and biases of the only affine layer of a head."""
    node = next(node for node in graph.graph.node if node.op_type == "Gemm")
    tensors = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    return tensors[node.input[1]], tensors[node.input[2]]


@pytest.mark.parametrize("label", [0, 1, 2])
def test_for_an_affine_head_it_is_cam_up_to_a_constant(model, images, label):
    parts = taken_apart(onnx.load_model(model.file))
    weight, _ = weights(parts.head)
    with Evidence.of(model) as evidence:
        assert evidence.method == LEFT_OUT
        found = evidence.maps(images, [label] * 3)
        maps = evidence._maps.run(images)[MAPS]
    cam = np.einsum("nchw,c->nhw", maps, weight[label])
    count = cam[0].size
    expected = (cam - cam.mean((1, 2), keepdims=True)) / (count - 1)
    assert found == pytest.approx(expected, abs=float(1e-4 * np.abs(expected).max() + 1e-5))
    assert np.ptp(found[0]) > 0


def test_another_head_gives_another_map(model, images, tmp_path):
    graph = onnx.load_model(model.file)
    weight, _ = weights(graph)
    changed = np.random.default_rng(1).normal(size=weight.shape).astype(np.float32)
    node = next(node for node in graph.graph.node if node.op_type == "Gemm")
    tensor = next(each for each in graph.graph.initializer if each.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save_model(graph, tmp_path / "model.onnx")
    with Model.open(tmp_path / "model.onnx") as other, Evidence.of(model) as own, Evidence.of(other) as theirs:
        one, two = (each.maps(images, [0, 0, 0]).ravel() for each in (own, theirs))
    assert np.corrcoef(one, two)[0, 1] < 0.9


def graph_of(nodes, tensors=(), shape=("n", 4, 4, 3)):
    """A graph from images to logits, of float values."""
    entry = helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, shape)
    exit_ = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["n", None])
    made = helper.make_graph(nodes, "g", [entry], [exit_], [numpy_helper.from_array(a, name) for name, a in tensors])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_kept_axes_tokens_and_what_follows_the_mean_are_parts_of_the_head():
    kept = graph_of(
        [
            helper.make_node("Transpose", [IMAGES], ["x"], perm=[0, 3, 1, 2]),
            helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Relu", ["flat"], [LOGITS]),
        ]
    )
    parts = taken_apart(kept)
    assert [node.op_type for node in parts.head.graph.node] == ["Unsqueeze", "Flatten", "Relu"]
    onnx.checker.check_model(parts.maps)
    tokens = graph_of(
        [
            helper.make_node("Relu", [IMAGES], ["x"]),
            helper.make_node("ReduceMean", ["x", "axes"], ["f"], keepdims=0),
            helper.make_node("Relu", ["f"], [LOGITS]),
        ],
        [("axes", np.array([1]))],
        ("n", 9, 5),
    )
    parts = taken_apart(tokens)
    assert parts.axes == (1,)
    assert [node.op_type for node in parts.head.graph.node] == ["Identity", "Relu"]


def test_a_network_without_a_mean_is_covered_part_by_part(images):
    """A class token, say: what it rests on is found by covering parts of the image."""

    class Corner:
        input, outputs, workers, batch_size = IMAGES, (LOGITS, PROBABILITIES), 1, 8

        def run(self, array, outputs=None):
            bright = array[:, :4, :4].mean((1, 2, 3))
            return {LOGITS: np.stack([bright, -bright], axis=1).astype(np.float32)}

    class Opened:
        session = Corner()

    white = np.full_like(images[:1], 255)
    with Evidence.of(Opened()) as evidence:
        assert evidence.method == OCCLUSION
        found = evidence.maps(white, [0])[0]
    assert np.unravel_index(found.argmax(), found.shape) == (0, 0)
    assert np.count_nonzero(found) == 1
    picture = overlay(white[0], found)
    assert picture.shape == (32, 32, 3)
    assert np.ptp(picture[2, 2].astype(int)) > np.ptp(picture[-1, -1].astype(int))


def test_what_lies_before_and_beside_a_mean_is_no_head():
    beside = graph_of(
        [
            helper.make_node("Transpose", [IMAGES], ["x"], perm=[0, 3, 1, 2]),
            helper.make_node("GlobalAveragePool", ["x"], ["scale"]),  # of a squeeze-and-excitation block
            helper.make_node("Mul", ["x", "scale"], ["y"]),
            helper.make_node("Flatten", ["y"], [LOGITS]),
        ]
    )
    assert taken_apart(beside) is None
