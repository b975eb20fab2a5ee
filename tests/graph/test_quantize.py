"""int8 graphs: what they are calibrated on, what is quantized, and which layer suffers most."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization.calibrate import TensorData

from tests.kit.tiny import Tiny, elsewhere
from tlkit.errors import DataError
from tlkit.exporting import calibration as calibrate
from tlkit.exporting.calibration import sensitivity
from tlkit.graph.quantize import ACTIVATIONS, OPERATORS, WEIGHTED, layer_names, layers, quantize
from tlkit.model import reference_images
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import FEATURES, Preprocessing
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


def moved(run, tmp_path, per_class):
    """A bundle's images in another place, with so many of each class."""
    shutil.copytree(reference_images.source(open_bundle(run)), tmp_path / "other")
    for label in (tmp_path / "other").iterdir():
        for file in sorted(label.iterdir())[per_class:]:
            file.unlink()
    return tmp_path / "other"


class TestCalibration:
    def test_images_are_those_of_the_training_split_and_the_same_every_time(self, tiny_run, calibration):
        bundle = open_bundle(tiny_run)
        _, dataset = reference_images.dataset(bundle)
        assert calibration.names == tuple(sample.name for sample in dataset.of("train"))
        assert {name.split("/")[0] for name in calibration.names} == set(dataset.labels)
        assert calibration.images.shape[1:] == (32, 32, 3)
        again = calibrate.draw(bundle)
        assert again.names == calibration.names
        assert np.array_equal(again.images, calibration.images)

    def test_of_many_images_some_of_every_class_are_taken(self, tiny_run):
        names = calibrate.draw(open_bundle(tiny_run), policy=calibrate.CalibrationPolicy(max_images=17)).names
        assert len(names) == len(set(names)) == 17
        assert len({name.split("/")[0] for name in names}) == 3

    def test_an_unreadable_image_is_skipped(self, tiny_run, tmp_path):
        other = moved(tiny_run, tmp_path, 12)
        bad = calibrate.draw(open_bundle(tiny_run), other).names[0]
        (other / bad).write_bytes(b"no image")
        assert bad not in calibrate.draw(open_bundle(tiny_run), other).names

    def test_too_few_images_are_refused(self, tiny_run, tmp_path):
        with pytest.raises(DataError, match=r"other: \d images to calibrate int8 on .* at least 16 .*--data"):
            calibrate.draw(open_bundle(tiny_run), moved(tiny_run, tmp_path, 3))

    def test_images_that_are_gone_are_asked_for(self, tiny_run):
        with pytest.raises(DataError, match=r"run: the images that .* not on this machine any more; .*--data"):
            calibrate.draw(elsewhere(open_bundle(tiny_run)))

    def test_the_range_of_the_pixels_is_known_and_not_measured(self, trunk, ranges):
        name = calibrate.normalized(trunk)
        assert next(node for node in trunk.graph.node if name in node.input).op_type == "Conv"
        assert ranges[name].range_value == pytest.approx((-2.5, 2.5))
        lite = Preprocessing(224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        assert calibrate.pixel_range(lite) == pytest.approx((-127 / 128, 1))  # 256 levels of 1/128: nothing is lost

    def test_other_ranges_are_those_of_the_values(self, trunk, ranges, calibration):
        last = [node for node in trunk.graph.node if node.op_type == "Conv"][-1].output[0]
        graph = onnx.shape_inference.infer_shapes(trunk)
        graph.graph.output.extend(value for value in graph.graph.value_info if value.name == last)
        values = ReferenceEvaluator(graph).run([last], {"images": calibration.images})[0]
        assert ranges[last].range_value == pytest.approx((values.min(), values.max()), rel=1e-4)


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


@pytest.mark.parametrize("worst", [0, 1])
def test_the_layer_that_is_quantized_worst_is_the_most_sensitive(trunk, calibration, worst):
    names, ticks = layers(trunk), []
    spoiled = calibrate.ranges(trunk, calibration.images, Tiny.preprocessing, OPERATORS)
    # What goes into the first layer, or comes out of the last, concerns that one alone. A range so wide has few levels.
    tensor = calibrate.normalized(trunk) if worst == 0 else last_activation(trunk)
    spoiled[tensor] = TensorData(lowest=np.float32(-100), highest=np.float32(100))
    found = sensitivity(trunk, spoiled, calibration.images, ticks.append)
    assert {layer.node for layer in found} == set(names)
    assert found[0].node == names[worst]
    assert found[0].name == ("first / conv", "second / conv")[worst]
    assert found[0].error > 5 * found[1].error
    assert sum(ticks) == len(names)


def last_activation(graph):
    return [node.output[0] for node in graph.graph.node if node.op_type in (*WEIGHTED, *ACTIVATIONS)][-1]


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
