"""Novelty: a detector is chosen by leaving classes out, and is a score of the head from training to prediction."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from tlkit_standard.detectors import DETECTORS, Energy, NearestNeighbor, NeighborEnergy
from torch import nn

from tests.kit.exporting import modules, replayed
from tests.kit.tiny import Line, Scored, resign
from tlkit import cli
from tlkit.errors import DataError, PluginError
from tlkit.model.bundle import open_bundle
from tlkit.model.novelty import DetectingHead, choose, raw_scores, with_novelty
from tlkit.runtime.model import Model
from tlkit.training.inputs import Examples

ORIGIN = ("tlkit", "0.1.0")


def clusters(count, classes, seed=0, noise=0.3):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = np.random.default_rng(1).exponential(1.0, (classes + 1, 16))
    features = np.maximum(centers[labels] + random.normal(0, noise, (count, 16)), 0).astype(np.float32)
    novel = np.maximum(centers[-1] + random.normal(0, noise, (count, 16)), 0).astype(np.float32)
    return Examples(features, labels), novel


def linear(examples, classes):
    layer = nn.Linear(16, classes)
    means = np.stack([examples.features[examples.labels == label].mean(0) for label in range(classes)])
    layer.load_state_dict({"weight": torch.from_numpy(means), "bias": torch.from_numpy(-0.5 * (means**2).sum(1))})
    return layer.eval()


class Means(Line):
    """A head that is solved: by the means of the classes, which are all there."""

    def solve(self, features, labels, classes, seed):
        assert set(labels) == set(range(classes))
        return linear(Examples(features, labels), classes)


class Unsolvable(Line):
    def solve(self, features, labels, classes, seed):
        raise DataError("a class has one image")


def test_the_bundle_has_the_detector_its_threshold_and_the_score(novel_run):
    bundle = open_bundle(novel_run)
    novelty = bundle.record.novelty
    assert bundle.record.scores == ("novelty",)
    assert novelty["name"] == "neighbor-energy"
    assert novelty["options"] == {"k": 5, "images": 9}
    assert (novelty["threshold"], novelty["kept"]) == (1.0, 0.95)
    assert "not_chosen" in novelty  # of three classes two have ten images to train on
    assert bundle.expected()["novelty"].shape == (4,)


def test_the_graph_gives_the_score_and_prediction_says_unknown(novel_run, pictures):
    red = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    with Model.open(novel_run) as model:
        assert model.novelty_threshold == 1.0
        assert model.session.outputs == ("features", "logits", "novelty", "probabilities")
        known = model.predict(sorted((pictures / "light").iterdir()))
        assert sum(each.unknown for each in known) <= len(known) / 2  # the threshold rests on nine images
        (strange,) = model.predict(red)
        assert strange.scores["novelty"] > max(each.scores["novelty"] for each in known)
        assert strange.unknown


def test_predict_prints_unknown_or_the_labels_of_a_set(novel_run, pictures, tmp_path, capsys):
    strange, known = tmp_path / "red.png", min((pictures / "light").iterdir())
    Image.new("RGB", (64, 64), "red").save(strange)
    line = ["predict", str(novel_run / "onnx/fp32/model.onnx"), str(strange), str(known), "--unknown"]
    assert cli.run(line) == 0
    one, other = (each.split("\t") for each in capsys.readouterr().out.splitlines())
    assert one[1] == "unknown"
    assert other[1] in ("dark", "light", "middle")
    assert float(one[-1].removeprefix("novelty ")) > 1 >= float(other[-1].removeprefix("novelty "))
    assert cli.run([*line, "--coverage", "0.99", "--json"]) == 0
    one, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert (one["unknown"], other["unknown"]) == (True, False)
    assert len(other["predictions"]) == 3  # with nine validation images 99 % can't be promised by fewer


@pytest.mark.parametrize(
    ("option", "props", "says"),
    [
        ("--unknown", {}, "has no detector of unknown images"),
        ("--coverage=0.9", {}, "no thresholds of sets of labels; train and export it again"),
        ("--coverage=0.9", {"tlkit.activation": "sigmoid"}, "leave out the coverage: its classes may overlap"),
    ],
)
def test_a_graph_without_them_is_refused(tiny_run, pictures, tmp_path, capsys, option, props, says):
    graph = onnx.load_model(tiny_run / "onnx/fp32/model.onnx")
    known = {prop.key: prop.value for prop in graph.metadata_props if prop.key != "tlkit.coverage"}
    helper.set_model_props(graph, known | props)
    onnx.save_model(graph, tmp_path / "model.onnx")
    assert cli.run(["predict", str(tmp_path / "model.onnx"), str(min(pictures.rglob("*.png"))), option]) == 4
    assert says in capsys.readouterr().err


def test_a_replay_finds_another_detector_of_the_same_kind(novel_run, tmp_path):
    place = shutil.copytree(novel_run, tmp_path / "run")
    file = place / "onnx/fp32/model.onnx"
    graph = onnx.load_model(file)
    bank = next(each for each in graph.graph.initializer if sorted(each.dims) == [8, 9])  # eight features, nine images
    swapped = np.flip(numpy_helper.to_array(bank), list(bank.dims).index(8))
    bank.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(swapped), bank.name))
    onnx.save_model(graph, file)
    resign(place, "model.onnx")
    told = replayed(place)
    assert not told.problems
    assert not told.passed


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_is_an_output_in_every_precision(novel_run, precision):
    with Model.open(novel_run / "onnx" / precision) as model:
        assert "novelty" in model.session.outputs


def test_the_modules_come_back_with_the_tensors_of_the_head_once(novel_run, novel_config):
    bundle = open_bundle(novel_run)
    assert {"weight", "bias", "novelty.detector.one.bank", "novelty.detector.scales"} <= set(bundle.head)
    assert not any("head" in name for name in bundle.head)
    head = DetectingHead(novel_config.head, next(iter(novel_config.detectors)))
    again = modules(novel_run, novel_config.backbone, head)
    outputs = again.head_outputs()(bundle.expected()["features"])
    assert outputs["novelty"] == pytest.approx(bundle.expected()["novelty"], abs=1e-5)


def test_the_detector_that_tells_left_out_classes_best_is_chosen():
    class Blind(NearestNeighbor):
        name = "blind"

        def fit(self, features, labels, head, seed):
            return super().fit(np.ones_like(features), labels, head, seed)

    train, _ = clusters(120, 4)
    chosen, report = choose({Blind(): ORIGIN, NearestNeighbor(): ORIGIN}, Means(), train, 0)
    assert chosen.name == "nearest-neighbor"
    assert report["left_out"] == 4
    assert report["areas"]["nearest-neighbor"] > 0.9
    assert report["areas"]["nearest-neighbor"] > report["areas"]["blind"]


@pytest.mark.parametrize(
    ("head", "says"),
    [(Line(), "head line learns by gradient"), (Unsolvable(), "the head line can't be solved: a class has one image")],
)
def test_with_a_head_that_can_not_be_solved_it_says_that_none_can_be_chosen(head, says):
    train, _ = clusters(60, 3)
    chosen, report = choose(dict.fromkeys(DETECTORS, ORIGIN), head, train, 0)
    assert chosen.name == "neighbor-energy"
    assert says in report["not_chosen"]


def test_with_two_classes_it_says_that_none_can_be_chosen():
    train, _ = clusters(60, 2)
    chosen, report = choose(dict.fromkeys(DETECTORS, ORIGIN), Means(), train, 0)
    assert chosen.name == "neighbor-energy"
    assert "two classes" in report["not_chosen"]


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda each: each.name)
def test_each_detector_tells_novel_images_and_keeps_known_ones(detector):
    train, _ = clusters(200, 4)
    val, novel = clusters(100, 4, seed=5)
    wrapped, facts = with_novelty({detector: ORIGIN}, Means(), linear(train, 4), train, val, 0)
    known = raw_scores(Novelty(wrapped), val.features)
    assert np.mean(known <= 1) == pytest.approx(0.96, abs=1e-6)  # the 96th of 100, as 95 % are to be known
    assert np.median(known) == pytest.approx(0, abs=1e-3)
    assert np.mean(raw_scores(Novelty(wrapped), novel) > 1) > 0.3  # of known ones 0.05
    assert facts["name"] == detector.name


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda each: each.name)
@pytest.mark.parametrize("noise", [0.3, 1e-2, 1e-4, 0.0])
def test_rounding_does_not_decide_however_little_the_images_of_a_class_differ(detector, noise):
    train, novel = clusters(200, 4, noise=noise)
    val, _ = clusters(100, 4, seed=5, noise=noise)
    wrapped, _ = with_novelty({detector: ORIGIN}, Means(), linear(train, 4), train, val, 0)
    moved = val.features * np.random.default_rng(0).normal(1, 1e-6, val.features.shape).astype(np.float32)
    known, double = raw_scores(Novelty(wrapped), val.features), copy.deepcopy(wrapped).double()
    assert np.abs(known).max() < 10
    assert np.median(raw_scores(Novelty(wrapped), novel)) > np.quantile(known, 0.9)
    for other in (
        raw_scores(Novelty(wrapped), moved),
        Novelty(double)(torch.from_numpy(val.features).double()).numpy(force=True),
    ):
        assert np.quantile(np.abs(other - known), 0.9) < 1e-3
        assert np.abs(other - known).max() < 3e-3


def test_a_head_whose_logits_are_logarithms_of_probabilities():
    """Their energy is 0 for all images but for rounding, which decided, so that the export failed."""
    train, novel = clusters(200, 4)
    val, _ = clusters(100, 4, seed=5)
    head = nn.Sequential(linear(train, 4), nn.LogSoftmax(1)).eval()
    for detector, told in ((Energy(), 0.0), (NeighborEnergy(), 0.3)):
        wrapped, _ = with_novelty({detector: ORIGIN}, Means(), head, train, val, 0)
        known, double = raw_scores(Novelty(wrapped), val.features), copy.deepcopy(wrapped).double()
        assert np.abs(known - Novelty(double)(torch.from_numpy(val.features).double()).numpy(force=True)).max() < 1e-3
        assert np.mean(raw_scores(Novelty(wrapped), novel) > 1) >= told


class Novelty(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.inner = head

    def forward(self, features):
        return self.inner.scores(features)[-1]


def test_the_scores_of_the_head_come_first():
    train, _ = clusters(60, 3)
    head = Scored().module(16, 3).eval()
    wrapped, _ = with_novelty({Energy(): ORIGIN}, Scored(), head, train, train, 0)
    rows = torch.from_numpy(train.features[:4])
    energy, margin, novelty = wrapped.scores(rows)
    assert torch.equal(energy, head.scores(rows)[0])
    assert torch.equal(margin, head.scores(rows)[1])
    assert torch.allclose(novelty * wrapped.scale + wrapped.middle, energy)


@pytest.mark.parametrize(
    ("fitted", "said"),
    [
        (
            lambda x: x,
            r"failed in the module of fit\(\): ValueError: it gives torch.float32 \(2, 16\), not torch.float32",
        ),
        (lambda x: x.double().mean(1), r"fit\(\): ValueError: it gives torch.float64 \(2,\)"),
        (lambda x: x.mean(1) / 0, r"fit\(\): ValueError: it gives values that are not finite"),
        (lambda x: x.mean(1), r"failed in restore\(\): its module gives other scores than the fitted one"),
    ],
)
def test_a_detector_that_does_not_give_scores_is_named_and_not_stored(fitted, said):
    class Odd(NearestNeighbor):
        def fit(self, features, labels, head, seed):
            module = nn.Identity()
            module.forward = fitted
            return module

        def restore(self, tensors, head):
            module = nn.Identity()
            module.forward = lambda x: -x.mean(1)
            return module

    train, _ = clusters(40, 2)
    with pytest.raises(PluginError, match=f"^detector 'nearest-neighbor'.*{said}"):
        with_novelty({Odd(): ORIGIN}, Means(), linear(train, 2), train, train, 0)
