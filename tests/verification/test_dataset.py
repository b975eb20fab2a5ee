"""Exports against the trained modules, on a whole dataset."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.kit.exporting import modules
from tests.kit.tiny import Line, Tiny, resign
from tlkit.data import dataset
from tlkit.evaluation.evaluate import run_samples
from tlkit.runtime.model import Model
from tlkit.verification.dataset import OUTPUTS, compare_on_dataset
from tlkit.verification.parity import TOLERANCES


def ask(model, pictures):
    samples = dataset.read(pictures, labels=model.labels).samples
    ticks = []
    given = run_samples(model, samples, ticks.append, OUTPUTS)
    assert sum(ticks) == len(samples)
    return given


@pytest.fixture(scope="module")
def trained(tiny_run, pictures):
    return ask(Model(modules(tiny_run, Tiny(), Line()).session(), tiny_run), pictures)


def test_the_modules_answer_as_a_session(trained):
    assert set(trained.arrays) == set(OUTPUTS)
    assert len(trained.truth) == 36
    assert trained.arrays["probabilities"].sum(1) == pytest.approx(np.ones(36))
    assert np.array_equal(trained.predicted, trained.arrays["logits"].argmax(1))


def test_the_export_gives_the_same_on_every_image(tiny_run, pictures, trained):
    found = compare_on_dataset(trained, ask(Model.open(tiny_run), pictures), TOLERANCES["fp32"])
    assert found.passed
    assert (found.images, found.drop, found.comparison.flips, found.comparison.agreement) == (36, 0, 0, 1)
    assert found.accuracy == found.trained_accuracy > 0.9
    assert 0.9 < found.interval[0] < found.interval[1] == 1


def test_another_weight_costs_labels_and_is_counted(own_run, pictures, trained):
    file = own_run / "onnx/fp32/model.onnx"
    graph = onnx.load(file)
    weight = next(t for t in graph.graph.initializer if list(t.dims) in ([3, 8], [8, 3]))
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(graph, file)
    resign(own_run, "model.onnx")
    found = compare_on_dataset(trained, ask(Model.open(own_run), pictures), TOLERANCES["fp32"])
    assert not found.passed
    assert found.comparison.flips > 10
    assert found.drop == pytest.approx(100 * (found.trained_accuracy - found.accuracy))
    assert found.drop > 30


def test_a_bad_image_is_passed_over_on_both_sides(tiny_run, pictures, tmp_path):
    other = shutil.copytree(pictures, tmp_path / "photos")
    bad = other / "dark/03.png"
    bad.write_bytes(b"no image")
    sides = [Model(modules(tiny_run, Tiny(), Line()).session(), tiny_run), Model.open(tiny_run)]
    one, two = (ask(side, other) for side in sides)
    assert list(one.rejected) == list(two.rejected) == [str(bad)]
    assert compare_on_dataset(one, two, TOLERANCES["fp32"]).images == 35


def test_the_verb_verifies_on_a_folder(story, tlkit):
    done = tlkit("verify", story.run, "--data", story.root / "photos", "--json", cwd=story.root)
    assert done.code == 0, done.err
    found = json.loads(done.out)["onnx/fp32"]["data"]
    assert found["passed"]
    assert found["comparison"]["flips"] == 0
    assert found["images"] > 50
    assert found["drop"] == 0


def test_split_and_against_are_no_part_of_it(tlkit, tmp_path):
    assert tlkit("verify", tmp_path, "--split", "val").code == 2
    assert tlkit("verify", tmp_path / "model.onnx", "--against", tmp_path, "--data", tmp_path).code == 2
