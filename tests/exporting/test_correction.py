"""Corrected biases: int8 gives the mean of every channel that fp32 gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.graph.test_processors import LOUD, convolution, loud_network
from tests.kit.vit import TinyVit
from tlkit.exporting import calibration
from tlkit.exporting.correction import correct_biases
from tlkit.graph import trace
from tlkit.graph.biases import own_biases
from tlkit.graph.compose import cut_graph
from tlkit.graph.quantize import FLAVORS, OPERATORS, quantize
from tlkit.model.trunk import build
from tlkit.plugin.contract import FEATURES
from tlkit.runtime.session import OnnxSession


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (24, 16, 16, 3), np.uint8)


def coarse(network):
    """The network with weights of four tenths of a step, which rounding takes away."""
    for tensor in network.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name.startswith("w"):
            array[:] = 0.4 / 127
            array.reshape(len(array), -1)[:, 0] = 1
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return network


def features(graph, images, tmp_path):
    onnx.save(graph, tmp_path / "graph.onnx")
    return OnnxSession(tmp_path / "graph.onnx").run(images)[FEATURES]


def errors(fp32, images, tmp_path, flavor="int8", keep=(), preprocessing=LOUD):
    """The error of the mean features, before and after, relative to their size, and the graph that was corrected."""
    ranges, ticks = calibration.ranges(fp32, images, preprocessing, OPERATORS), []
    before = fp32.SerializeToString()
    corrected = correct_biases(fp32, ranges, images, ticks.append, flavor=flavor, keep=keep)
    assert fp32.SerializeToString() == before
    expected = features(fp32, images, tmp_path).mean(0)
    graphs = [quantize(graph, ranges, flavor=flavor, keep=keep) for graph in (fp32, corrected)]
    off = [np.abs(features(graph, images, tmp_path).mean(0) - expected).mean() for graph in graphs]
    return [each / np.abs(expected).mean() for each in off], corrected, ticks


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("keep", [(), ("depthwise",)])
def test_the_mean_features_are_those_of_fp32(images, tmp_path, flavor, keep):
    (before, after), corrected, ticks = errors(coarse(loud_network()), images, tmp_path, flavor, keep)
    assert before > 0.02
    assert after < 0.4 * before
    assert len(ticks) == len(own_biases(corrected)[1]) == 2  # the matrix has no Add behind it


def test_of_a_transformer_too(tmp_path, monkeypatch):
    monkeypatch.setattr("tlkit.graph.quantize.LEVELS", 7)  # its weights take eight bits well
    trunk = build(TinyVit(), pretrained=True)
    size = trunk.preprocessing.size
    images = np.random.default_rng(2).integers(0, 256, (16, size, size, 3), np.uint8)
    fp32 = cut_graph(onnx.load(trace.stage_graph(trunk)), trunk.names[-1])
    (before, after), _, ticks = errors(fp32, images, tmp_path, preprocessing=trunk.preprocessing)
    assert len(ticks) >= 4
    assert after < 0.7 * before


class TestOwnBiases:
    def graph(self, *nodes, **constants):
        arrays = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
        return helper.make_model(helper.make_graph(list(nodes), "g", [], [], arrays))

    def found(self, *nodes, **constants):
        changed, biases = own_biases(self.graph(*nodes, **constants))
        values = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in changed.graph.initializer}
        inputs = {node.name: list(node.input) for node in changed.graph.node}
        assert all(inputs[bias.node][bias.place] == bias.constant for bias in biases)
        return {bias.node: values[bias.constant] for bias in biases}

    def test_two_layers_with_one_bias_get_one_each(self):
        nodes = [
            helper.make_node("Conv", ["x", "w", "b"], [f"y{name}"], name=name, **convolution(1)) for name in ("p", "q")
        ]
        assert self.found(*nodes, w=np.ones((2, 1, 1, 1)), b=[1, 2]) == {"p": [1, 2], "q": [1, 2]}

    def test_a_layer_without_a_bias_gets_zeros(self):
        conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
        empty = helper.make_node("Conv", ["x", "w", ""], ["z"], name="empty")
        gemm = helper.make_node("Gemm", ["x", "m"], ["u"], name="gemm")
        other = helper.make_node("Gemm", ["x", "m"], ["v"], name="other", transB=1)
        found = self.found(conv, empty, gemm, other, w=np.ones((3, 1, 1, 1)), m=np.ones((2, 4)))
        assert found == {"conv": [0] * 3, "empty": [0] * 3, "gemm": [0] * 4, "other": [0] * 2}

    def test_that_of_a_matrix_product_is_in_the_add_behind_it(self):
        product = helper.make_node("MatMul", ["x", "m"], ["y"], name="product")
        add = helper.make_node("Add", ["b", "y"], ["z"], name="add")
        assert self.found(product, add, m=np.ones((2, 3)), b=[1, 2, 3]) == {"add": [1, 2, 3]}

    def test_others_are_left_alone(self):
        attention = helper.make_node("MatMul", ["x", "y"], ["p"], name="attention")
        alone = helper.make_node("MatMul", ["x", "m"], ["q"], name="alone")
        scalar = helper.make_node("Gemm", ["x", "m", "s"], ["r"], name="scalar")
        computed = helper.make_node("Conv", ["x", "w", "q"], ["t"], name="computed")
        assert not self.found(attention, alone, scalar, computed, m=np.ones((2, 3)), s=[1], w=np.ones((1, 1, 1, 1)))
