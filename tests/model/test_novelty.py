"""Novelty: a detector is chosen by leaving classes out, and is a score of the head from training to prediction."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tlkit_standard.detectors import DETECTORS, Energy, NearestNeighbor, NeighborEnergy
from torch import nn

from tests.kit.exporting import exported, modules, replayed
from tests.kit.tiny import Scored, resign
from tlkit.model.bundle import open_bundle
from tlkit.model.novelty import DetectingHead, choose, raw_scores, with_novelty
from tlkit.runtime.model import Model
from tlkit.training.inputs import Examples
from tlkit.training.run import train

ORIGIN = ("tlkit", "0.1.0")


@pytest.fixture(scope="module")
def config(tiny_config):
    return replace(tiny_config, detectors={NeighborEnergy(images=9): ORIGIN, Energy(): ORIGIN})


@pytest.fixture(scope="module")
def run(pictures, config, tmp_path_factory):
    """A bundle whose head has a detector, exported."""
    place = tmp_path_factory.mktemp("novel") / "run"
    train(pictures, place, config)
    exported(place, config.backbone, detecting(config))
    return place


def detecting(config):
    return DetectingHead(config.head, next(iter(config.detectors)))


def clusters(count, classes, seed=0, noise=0.3):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = np.random.default_rng(1).exponential(1.0, (classes + 1, 16))
    features = np.maximum(centers[labels] + random.normal(0, noise, (count, 16)), 0).astype(np.float32)
    novel = np.maximum(centers[-1] + random.normal(0, noise, (count, 16)), 0).astype(np.float32)
    return Examples(features, labels), novel


def linear(examples, classes):
    import torch

    layer = nn.Linear(16, classes)
    means = np.stack([examples.features[examples.labels == label].mean(0) for label in range(classes)])
    layer.load_state_dict({"weight": torch.from_numpy(means), "bias": torch.from_numpy(-0.5 * (means**2).sum(1))})
    return layer.eval()


def test_the_bundle_has_the_detector_its_threshold_and_the_score(run):
    bundle = open_bundle(run)
    novelty = bundle.record.novelty
    assert bundle.record.scores == ("novelty",)
    assert novelty["name"] == "neighbor-energy"
    assert novelty["options"] == {"k": 5, "images": 9}
    assert (novelty["threshold"], novelty["kept"]) == (1.0, 0.95)
    assert "not_chosen" in novelty  # of three classes two have ten images to train on
    assert bundle.expected()["novelty"].shape == (4,)


def test_the_graph_gives_the_score_and_prediction_says_unknown(run, pictures):
    noise = np.random.default_rng(0).integers(0, 2, (64, 64, 3), dtype=np.uint8) * 255
    with Model.open(run) as model:
        assert model.novelty_threshold == 1.0
        assert model.session.outputs == ("features", "logits", "novelty", "probabilities")
        known = model.predict(sorted((pictures / "light").iterdir()))
        assert sum(each.unknown for each in known) <= len(known) / 2  # the threshold rests on nine images
        (strange,) = model.predict(noise)
        assert strange.scores["novelty"] > max(each.scores["novelty"] for each in known)
        assert strange.unknown


def test_a_replay_finds_another_threshold_and_another_detector(run, tmp_path):
    assert replayed(run).passed
    place = shutil.copytree(run, tmp_path / "run")
    file = place / "onnx/fp32/model.onnx"
    graph = onnx.load_model(file)
    props = {prop.key: prop.value for prop in graph.metadata_props}
    helper.set_model_props(graph, {**props, "tlkit.novelty": json.dumps(2.0)})
    onnx.save_model(graph, file)
    resign(place, "model.onnx")
    told = replayed(place)
    assert not told.passed
    assert "threshold of novelty is 2.0, not 1.0" in told.problems[0]
    helper.set_model_props(graph, props)
    bank = next(each for each in graph.graph.initializer if sorted(each.dims) == [8, 9])  # eight features, nine images
    swapped = np.flip(numpy_helper.to_array(bank), list(bank.dims).index(8))
    bank.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(swapped), bank.name))
    onnx.save_model(graph, file)
    resign(place, "model.onnx")
    told = replayed(place)
    assert not told.problems
    assert not told.passed


def test_it_is_proven_in_every_precision(run, config):
    for precision in ("fp16", "int8"):
        exported(run, config.backbone, detecting(config), precision)
        assert replayed(run, precision).passed
        with Model.open(run / "onnx" / precision) as model:
            assert "novelty" in model.session.outputs


def test_the_modules_come_back_with_the_tensors_of_the_head_once(run, config):
    bundle = open_bundle(run)
    assert {"weight", "bias", "novelty.detector.one.bank", "novelty.detector.scales"} <= set(bundle.head)
    assert not any("head" in name for name in bundle.head)
    again = modules(run, config.backbone, detecting(config))
    outputs = again.head_outputs()(bundle.expected()["features"])
    assert outputs["novelty"] == pytest.approx(bundle.expected()["novelty"], abs=1e-5)


def test_the_detector_that_tells_left_out_classes_best_is_chosen():
    class Blind(NearestNeighbor):
        name = "blind"

        def fit(self, features, labels, head, seed):
            return super().fit(np.ones_like(features), labels, head, seed)

    train, _ = clusters(120, 4)
    head = linear(train, 4)
    chosen, report = choose({Blind(): ORIGIN, NearestNeighbor(): ORIGIN}, head, train, 0)
    assert chosen.name == "nearest-neighbor"
    assert report["left_out"] == 4
    assert report["areas"]["nearest-neighbor"] > 0.9
    assert report["areas"]["nearest-neighbor"] > report["areas"]["blind"]


def test_with_two_classes_it_says_that_none_can_be_chosen():
    train, _ = clusters(60, 2)
    chosen, report = choose(dict.fromkeys(DETECTORS, ORIGIN), linear(train, 2), train, 0)
    assert chosen.name == "neighbor-energy"
    assert "two classes" in report["not_chosen"]


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda each: each.name)
def test_each_detector_tells_novel_images_and_keeps_known_ones(detector):
    train, _ = clusters(200, 4)
    val, novel = clusters(100, 4, seed=5)
    wrapped, facts = with_novelty({detector: ORIGIN}, linear(train, 4), train, val, 0)
    known = raw_scores(Novelty(wrapped), val.features)
    assert np.mean(known <= 1) == pytest.approx(0.95, abs=0.011)
    assert np.median(known) == pytest.approx(0, abs=1e-3)
    assert np.mean(raw_scores(Novelty(wrapped), novel) > 1) > 0.3  # of known ones 0.05
    assert facts["name"] == detector.name


class Novelty(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.inner = head

    def forward(self, features):
        return self.inner.scores(features)[-1]


def test_the_scores_of_the_head_come_first():
    import torch

    train, _ = clusters(60, 3)
    head = Scored().module(16, 3).eval()
    wrapped, _ = with_novelty({Energy(): ORIGIN}, head, train, train, 0, scored=True)
    rows = torch.from_numpy(train.features[:4])
    energy, margin, novelty = wrapped.scores(rows)
    assert torch.equal(energy, head.scores(rows)[0])
    assert torch.equal(margin, head.scores(rows)[1])
    assert torch.allclose(novelty * wrapped.scale + wrapped.middle, energy)
