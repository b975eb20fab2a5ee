"""Calibration: the images, the ranges over them, and the most sensitive layer."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization.calibrate import TensorData

from tests.kit.tiny import Tiny, elsewhere
from tlkit.errors import DataError
from tlkit.exporting import calibration as calibrate
from tlkit.exporting.calibration import sensitivity
from tlkit.graph.quantize import ACTIVATIONS, OPERATORS, WEIGHTED, layers
from tlkit.model import reference_images
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import Preprocessing


@pytest.fixture(scope="module")
def trunk(tiny_run):
    return onnx.load(tiny_run / "onnx/fp32/trunk.onnx")


@pytest.fixture(scope="module")
def calibration(tiny_run):
    return calibrate.draw(open_bundle(tiny_run))


@pytest.fixture(scope="module")
def ranges(trunk, calibration):
    return calibrate.ranges(trunk, calibration.images, Tiny.preprocessing, OPERATORS)


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


@pytest.mark.parametrize("worst", [0, 1])
def test_the_layer_that_is_quantized_worst_is_the_most_sensitive(tiny_run, trunk, calibration, worst):
    head = onnx.load(tiny_run / "onnx/fp32/head.onnx")
    names, ticks = layers(trunk), []
    spoiled = calibrate.ranges(trunk, calibration.images, Tiny.preprocessing, OPERATORS)
    # What goes into the first layer, or comes out of the last, concerns that one alone. A range so wide has few levels.
    tensor = calibrate.normalized(trunk) if worst == 0 else last_activation(trunk)
    spoiled[tensor] = TensorData(lowest=np.float32(-100), highest=np.float32(100))
    found = sensitivity(trunk, head, spoiled, calibration.images[:16], ticks.append, "int8")
    assert {layer.node for layer in found} == set(names)
    assert found[0].node == names[worst]
    assert found[0].name == ("first / conv", "second / conv")[worst]
    assert found[0].error > 5 * found[1].error
    assert sum(ticks) == len(names)


def last_activation(graph):
    return [node.output[0] for node in graph.graph.node if node.op_type in (*WEIGHTED, *ACTIVATIONS)][-1]
