"""int8 graphs: what is quantized, in either flavor, and the names of layers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.kit.tiny import Tiny
from tlkit.exporting import calibration as calibrate
from tlkit.graph.quantize import OPERATORS, WEIGHTED, float_operators, layer_names, layers, quantize
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import FEATURES
from tlkit.runtime.session import OnnxSession
from tlkit.verification.parity import cosines


@pytest.fixture(scope="module")
def trunk(tiny_run):
    return onnx.load(tiny_run / "onnx/fp32/trunk.onnx")


@pytest.fixture(scope="module")
def calibration(tiny_run):
    return calibrate.draw(open_bundle(tiny_run))


@pytest.fixture(scope="module")
def ranges(trunk, calibration):
    return calibrate.ranges(trunk, calibration.images, Tiny.preprocessing, OPERATORS)


@pytest.fixture(scope="module")
def int8(trunk, ranges):
    return quantize(trunk, ranges)


@pytest.fixture(scope="module")
def symmetric(trunk, ranges):
    return quantize(trunk, ranges, flavor="int8-symmetric")


def features(graph, images, tmp_path):
    onnx.save(graph, tmp_path / "g.onnx")
    return OnnxSession(tmp_path / "g.onnx").run(images)[FEATURES]


class TestQuantize:
    def test_activations_are_uint8_and_weights_int8_by_channel(self, int8):
        tensors = {tensor.name: tensor for tensor in int8.graph.initializer}
        quantize_nodes = [node for node in int8.graph.node if node.op_type == "QuantizeLinear"]
        assert {tensors[node.input[2]].data_type for node in quantize_nodes} == {TensorProto.UINT8}
        makers = {node.output[0]: node for node in int8.graph.node}
        convolutions = [node for node in int8.graph.node if node.op_type in WEIGHTED]
        assert len(convolutions) == 2
        for node in convolutions:
            weight = makers[node.input[1]]
            stored = tensors[weight.input[0]]
            assert stored.data_type == TensorProto.INT8
            assert numpy_helper.to_array(tensors[weight.input[1]]).shape == (stored.dims[0],)

    def test_pixels_are_normalized_in_float_without_loss_of_levels(self, int8):
        first = next(node for node in int8.graph.node if node.op_type == "QuantizeLinear")
        assert first.input[0] == "images/normalized"
        scale = next(t for t in int8.graph.initializer if t.name == first.input[1])
        low, high = calibrate.pixel_range(Tiny.preprocessing)
        assert numpy_helper.to_array(scale) == pytest.approx((high - low) / 255)

    def test_features_are_nearly_those_of_fp32(self, int8, trunk, calibration, tmp_path):
        expected, got = (features(graph, calibration.images, tmp_path) for graph in (trunk, int8))
        assert cosines(expected, got).min() > 0.999
        assert not np.array_equal(expected, got)

    def test_the_graph_it_is_made_from_stays_as_it_is(self, trunk, ranges):
        before = trunk.SerializeToString()
        quantize(trunk, ranges)
        assert trunk.SerializeToString() == before

    def test_layers_can_be_left_in_float(self, trunk, ranges):
        names = layers(trunk)
        assert len(names) == 2
        kept = quantize(trunk, ranges, keep=[names[0]])
        alone = quantize(trunk, ranges, only=[names[1]])
        for graph in (kept, alone):
            weights = [tensor for tensor in graph.graph.initializer if len(tensor.dims) == 4]
            assert sorted(tensor.data_type for tensor in weights) == [TensorProto.FLOAT, TensorProto.INT8]


class TestFloatOperators:
    """`(operator, inputs, output)` of graphs, in order; layers get a weight."""

    def left(self, *steps, keep=()):
        nodes = [
            helper.make_node(operator, [*inputs.split(), *(["w"] if operator in WEIGHTED else [])], [output], output)
            for operator, inputs, output in steps
        ]
        return float_operators(helper.make_model(helper.make_graph(nodes, "g", [], [])), keep)

    def test_sums_that_a_layer_reads_are_quantized(self):
        block = (("Conv", "x", "a"), ("Relu", "a", "b"), ("Conv", "b", "c"), ("Add", "b c", "sum"))
        assert self.left(*block, ("Relu", "sum", "d"), ("Conv", "d", "e"), ("ReduceMean", "e", "f")) == []
        assert self.left(*block, ("Add", "sum sum", "twice"), ("Conv", "twice", "e")) == []

    def test_sums_of_tokens_that_norms_read_are_not(self):
        first = (
            ("MatMul", "x", "a"),
            ("Concat", "token a", "b"),
            ("LayerNormalization", "b", "c"),
            ("MatMul", "c", "d"),
        )
        assert self.left(*first, ("Add", "b d", "e"), ("LayerNormalization", "e", "f")) == ["e", "b"]

    def test_what_is_pooled_is_not_but_a_fused_activation(self):
        steps = (
            ("Conv", "x", "a"),
            ("Clip", "a", "b"),
            ("Add", "b x", "c"),
            ("Relu", "c", "d"),
            ("ReduceMean", "d", "e"),
        )
        assert self.left(*steps) == ["d", "c"]

    def test_layers_in_float_read_in_float(self):
        steps = (("Conv", "x", "a"), ("Add", "a x", "b"), ("Conv", "b", "c"))
        assert self.left(*steps) == []
        assert self.left(*steps, keep=["c"]) == ["b"]

    def test_a_small_token_survives_beside_large_ones(self, tmp_path):
        random = np.random.default_rng(0)
        values = {"token": 0.01 * random.normal(size=(1, 1, 6)), "weight": random.normal(size=(3, 6))}
        nodes = [
            helper.make_node("Cast", ["images"], ["floats"], "cast", to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["floats", "shape"], ["pixels"], "reshape"),
            helper.make_node("MatMul", ["pixels", "weight"], ["tokens"], "matmul"),
            helper.make_node("Concat", ["token", "tokens"], ["all"], "concat", axis=1),
            helper.make_node("LayerNormalization", ["all", "ones"], ["normed"], "norm"),
            helper.make_node("Gather", ["normed", "first"], ["features"], "gather", axis=1),
        ]
        constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
        constants += [
            numpy_helper.from_array(np.array([1, 4, 3]), "shape"),
            numpy_helper.from_array(np.ones(6, np.float32), "ones"),
            numpy_helper.from_array(np.array(0), "first"),
        ]
        given = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 2, 2, 3])
        made = helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 6])
        graph = helper.make_model(
            helper.make_graph(nodes, "g", [given], [made], constants),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=9,
        )
        images = random.integers(0, 256, (1, 2, 2, 3)).astype(np.uint8)
        found = calibrate.ranges(graph, images, Tiny.preprocessing, OPERATORS)
        int8 = quantize(graph, found)
        assert any(node.op_type == "QuantizeLinear" for node in int8.graph.node)
        assert cosines(features(graph, images, tmp_path), features(int8, images, tmp_path)).min() > 0.999


class TestSymmetric:
    def test_activations_and_weights_are_int8_about_zero_and_biases_float(self, symmetric):
        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in symmetric.graph.initializer}
        quantizers = [n for n in symmetric.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert quantizers
        for node in quantizers:
            assert tensors[node.input[2]].dtype == np.int8
            assert not tensors[node.input[2]].any()
        makers = {output for node in symmetric.graph.node for output in node.output}
        for node in (node for node in symmetric.graph.node if node.op_type in WEIGHTED):
            assert node.input[2] not in makers
            assert tensors[node.input[2]].dtype == np.float32

    def test_features_are_nearly_those_of_fp32(self, symmetric, trunk, calibration, tmp_path):
        expected, got = (features(graph, calibration.images, tmp_path) for graph in (trunk, symmetric))
        assert cosines(expected, got).min() > 0.999


class TestLayerNames:
    def graph(self, *layers):
        """A graph of layers: operator, name of the weight, shape of the weight, groups."""
        nodes, weights = [], []
        for number, (operator, weight, shape, groups) in enumerate(layers):
            attributes = {"group": groups} if operator == "Conv" else {}
            nodes.append(helper.make_node(operator, ["x", weight], [f"y{number}"], name=f"node_{number}", **attributes))
            weights.append(numpy_helper.from_array(np.zeros(shape, np.float32), weight))
        return helper.make_model(helper.make_graph(nodes, "g", [], [], weights))

    @pytest.mark.parametrize(
        ("layer", "name"),
        [
            (("Conv", "trunk.stages.stem.conv.weight", (8, 3, 3, 3), 1), "stem / conv"),
            (
                ("Conv", "trunk.stages.stage3.1.depthwise.conv.weight", (8, 1, 3, 3), 8),
                "stage3 / block 2 / depthwise conv",
            ),
            (("Conv", "trunk.stages.stage3.0.project.conv.weight", (8, 4, 1, 1), 1), "stage3 / block 1 / project conv"),
            (("Conv", "trunk.stages.layer1.0.conv2.weight", (8, 4, 3, 3), 1), "layer1 / block 1 / conv2"),
            (("Conv", "trunk.stages.blocks.4.conv_dw.weight", (8, 1, 3, 3), 8), "blocks / block 5 / conv_dw depthwise"),
            (("MatMul", "trunk.stages.blocks.4.mlp.fc1.weight", (8, 4), 1), "blocks / block 5 / mlp fc1 linear"),
            (("MatMul", "val_17", (8, 4), 1), "node_0"),
        ],
    )
    def test_say_stage_block_and_operator(self, layer, name):
        assert layer_names(self.graph(layer)) == {"node_0": name}

    def test_are_unique(self):
        layer = ("Conv", "trunk.stages.stem.conv.weight", (8, 3, 3, 3), 1)
        graph = self.graph(layer)
        graph.graph.node.append(helper.make_node("Conv", ["z", layer[1]], ["y"], name="again"))
        assert layer_names(graph) == {"node_0": "stem / conv", "again": "again"}
