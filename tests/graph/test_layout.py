"""The first nodes of an int8 graph: rearranged they compute the same bits, and ONNX Runtime runs them as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from tests.kit.tiny import Tiny
from tests.kit.vit import TinyVit
from tlkit.exporting import calibration
from tlkit.graph import layout, trace
from tlkit.graph.compose import cut_graph
from tlkit.graph.quantize import FLAVORS, OPERATORS, layers, quantize
from tlkit.model.trunk import build
from tlkit.plugin.contract import FEATURES, IMAGES, Backbone, Preprocessing, Weights
from tlkit.runtime.session import OnnxSession

LITE = Preprocessing(32, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
OTHER = Tiny.preprocessing


@dataclass(frozen=True)
class Stem(Backbone):
    """A network that begins as it is told to."""

    name = "stem"
    preprocessing = LITE
    weights = Weights("nowhere: random weights", "Apache-2.0")
    kernel: int = 3
    stride: int = 2
    padding: int = 1
    same: bool = False  # padded on the right and below alone, as TensorFlow does

    def stages(self, *, pretrained):
        torch.manual_seed(3)
        pad = nn.ZeroPad2d((0, 1, 0, 1)) if self.same else nn.Identity()
        first = nn.Conv2d(3, 6, self.kernel, self.stride, 0 if self.same else self.padding)
        return {
            "first": nn.Sequential(pad, first, nn.ReLU6()).eval(),
            "second": nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU6()).eval(),
        }


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)


@pytest.fixture
def quantized(images, monkeypatch):
    """The int8 graph of a network, and the same one as it is without `merge_columns`."""

    def make(backbone, preprocessing=LITE, size=32, **options):
        params = replace(preprocessing, size=size)
        trunk = cut_graph(
            onnx.load(trace.stage_graph(build(backbone, pretrained=True, preprocessing=params))), "second"
        )
        ranges = calibration.ranges(trunk, images[:, :size, :size], params, OPERATORS)
        made = quantize(trunk, ranges, **options)
        with monkeypatch.context() as patch:
            patch.setattr(layout, "merge_columns", lambda graph: graph)
            return made, quantize(trunk, ranges, **options)

    return make


def features(graph, images, tmp_path):
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, tmp_path / "graph.onnx")
    return OnnxSession(tmp_path / "graph.onnx").run(images)[FEATURES]


def run_by_onnx_runtime(graph, tmp_path):
    """The operators that ONNX Runtime makes of a graph, in order."""
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 4
    onnxruntime.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


def kinds(graph):
    return [node.op_type for node in graph.graph.node]


def widths(graph):
    """Return the number of channels that each convolution reads."""
    return [tensor.dims[1] for tensor in graph.graph.initializer if len(tensor.dims) == 4]


BEGINNINGS = {
    "EfficientNet's": Stem(),
    "EfficientNet-Lite's": Stem(same=True),
    "ResNet's": Stem(kernel=7, padding=3),
    "not padded, even": Stem(kernel=2, padding=0),
}


@pytest.mark.parametrize("preprocessing", [LITE, OTHER], ids=["lossless", "normalized"])
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_columns_are_merged_and_every_value_stays(quantized, images, tmp_path, beginning, preprocessing):
    graph, before = quantized(BEGINNINGS[beginning], preprocessing)
    assert sorted(widths(before)) == [3, 6]
    assert sorted(widths(graph)) == [6, 12]
    assert np.array_equal(features(graph, images, tmp_path), features(before, images, tmp_path))


@pytest.mark.parametrize(
    ("beginning", "size"),
    [
        (Stem(stride=1), 32),
        (Stem(kernel=4, stride=4, padding=0), 32),
        (Stem(), 30),  # no whole number of fours
        (Stem(padding=0), 32),  # makes 15 columns of 32
    ],
)
def test_other_beginnings_are_left_as_they_are(quantized, images, tmp_path, beginning, size):
    graph, before = quantized(beginning, size=size)
    assert sorted(widths(graph)) == sorted(widths(before)) == [3, 6]
    shown = images[:, :size, :size]
    assert np.array_equal(features(graph, shown, tmp_path), features(before, shown, tmp_path))


def test_pixels_that_are_levels_already_are_not_computed_with(quantized, tmp_path):
    graph, before = quantized(Stem())
    assert {"Cast", "Sub", "Mul"} <= set(kinds(before))
    assert not {"Cast", "Sub", "Mul"} & set(kinds(graph))
    assert not [tensor.name for tensor in graph.graph.initializer if "normalize" in tensor.name]
    assert run_by_onnx_runtime(graph, tmp_path)[:4] == ["Reshape", "QLinearConv", "Reshape", "QLinearConv"]


def test_other_pixels_are_normalized_normalize_rows_and_quantized_before_they_are_moved(quantized, tmp_path):
    graph, _ = quantized(Stem(), OTHER)
    begun = ["Cast", "Sub", "Mul", "QuantizeLinear", "Reshape", "QLinearConv", "Reshape", "QLinearConv"]
    assert run_by_onnx_runtime(graph, tmp_path)[: len(begun)] == begun


def test_a_mean_between_two_levels_is_computed_with(quantized):
    graph, _ = quantized(Stem(), Preprocessing(32, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert {"Cast", "Sub", "Mul"} <= set(kinds(graph))


def test_a_first_layer_left_in_float_is_left_alone(quantized, images, tmp_path):
    whole, _ = quantized(Stem())
    graph, before = quantized(Stem(), keep=layers(whole)[:1])
    assert sorted(widths(graph)) == [3, 6]
    assert {"Cast", "Sub", "Mul"} <= set(kinds(graph))
    assert np.array_equal(features(graph, images, tmp_path), features(before, images, tmp_path))


def test_it_is_for_the_flavor_that_has_channels_last(quantized):
    assert [name for name, flavor in FLAVORS.items() if flavor.channels_last] == ["int8"]
    graph, _ = quantized(Stem(), flavor="int8-symmetric")
    assert [kind for kind in kinds(graph) if kind in ("Cast", "Transpose")] == ["Cast", "Transpose"]


class TestByRows:
    def test_it_gives_the_same_bits(self, images):
        trunk = cut_graph(onnx.load(trace.stage_graph(build(Tiny(), pretrained=True))), "second")
        name = calibration.normalized(trunk)
        values = []
        for graph in (trunk, layout.normalize_rows(trunk)):
            shown = onnx.shape_inference.infer_shapes(graph)
            shown.graph.output.extend(value for value in shown.graph.value_info if value.name == name)
            values.append(ReferenceEvaluator(shown).run([name], {IMAGES: images})[0])
        assert np.array_equal(*values)

    def test_a_graph_with_another_beginning_is_left_as_it_is(self):
        trunk = cut_graph(onnx.load(trace.stage_graph(build(Tiny(), pretrained=True))), "second")
        subtract = next(node for node in trunk.graph.node if node.op_type == "Sub")
        subtract.op_type = "Add"
        assert layout.normalize_rows(trunk) == trunk
        subtract.op_type = "Sub"
        mean = next(tensor for tensor in trunk.graph.initializer if tensor.name == subtract.input[1])
        mean.CopyFrom(numpy_helper.from_array(np.full((1, 3, 1, 1), 0.5, np.float32), mean.name))
        assert layout.normalize_rows(trunk) == trunk

    def test_a_network_that_asks_for_the_batch_size_is_normalized_by_rows(self, images):
        trunk = cut_graph(onnx.load(trace.stage_graph(build(TinyVit(), pretrained=True))), "first")
        assert [node.op_type for node in trunk.graph.node if IMAGES in node.input] == ["Shape", "Cast"]
        graph = layout.normalize_rows(trunk)
        onnx.checker.check_model(graph, full_check=True)
        assert kinds(graph)[:4] == ["Cast", "Sub", "Mul", "Transpose"]
        assert calibration.normalized(trunk) == calibration.normalized(graph)
        expected, got = (ReferenceEvaluator(each).run([FEATURES], {IMAGES: images})[0] for each in (trunk, graph))
        assert np.array_equal(expected, got)
