"""A head fitted again on the features in int8: kept where it does better, proven with what it is in."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.kit.exporting import built, export_of, modules, replayed, replayed_alone, searched
from tests.kit.faults import FAULTS, planted
from tests.kit.tiny import Line, Tiny, forget_source, resign
from tlkit import cli
from tlkit.errors import ArtifactError, DataError, UsageError
from tlkit.evaluation.evaluate import ModelOutputs
from tlkit.exporting.head_refit import better
from tlkit.model import exports, reference_images
from tlkit.model.bundle import open_bundle
from tlkit.model.novelty import DetectingHead
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES
from tlkit.runtime.model import Model
from tlkit.runtime.session import OnnxSession
from tlkit.util.statistics import softmax


@dataclass(frozen=True)
class Means(Line):
    """The nearest class mean as a linear head, so sure of itself that its log loss is low where it is right."""

    sharpness: float = 1000.0

    def solve(self, features, labels, classes, seed):
        means = np.stack([features[labels == label].mean(0) for label in range(classes)])
        solved = nn.Linear(features.shape[1], classes)
        with torch.no_grad():
            solved.weight.copy_(torch.from_numpy(means) * self.sharpness)
            solved.bias.copy_(torch.from_numpy(-np.square(means).sum(1) / 2) * self.sharpness)
        return solved


@pytest.fixture
def search(own_run, tiny_config):
    """Searches from a precision with a head to refit; what is written is in `own_run`."""

    def run(head, precision="int8", **options):
        return searched(own_run, tiny_config.backbone, head, precision, refit_head=precision == "int8", **options)

    return run


def metadata(file):
    return OnnxSession(file).metadata


def record(run, place="onnx/int8"):
    return json.loads((run / place / "manifest.json").read_text())


class TestKept:
    def test_a_better_head_is_in_the_graphs_and_the_bundle_stays_as_it_was(self, own_run, search):
        before = open_bundle(own_run)
        written, found = search(Means())
        refit = found.candidates[0].head
        assert refit.kept
        assert (refit.accuracy, -refit.log_loss) > (refit.own_accuracy, -refit.own_log_loss)
        assert found.candidates[0].accuracy == refit.accuracy
        assert all(verdict.passed for verdict in written.verdicts.values())
        assert record(own_run)["head_from"] == "export"
        assert record(own_run)["precision_search"]["candidates"][0]["head"]["kept"] is True
        after = open_bundle(own_run)
        assert after.digest == before.digest
        kept = export_of(own_run, "int8").refitted()
        assert not np.allclose(kept["weight"], before.head["weight"])
        weight = next(t for t in onnx.load(own_run / "onnx/int8/head.onnx").graph.initializer if len(t.dims) == 2)
        assert np.array_equal(np.sort(onnx.numpy_helper.to_array(weight).ravel()), np.sort(kept["weight"].ravel()))

    def test_it_was_fitted_on_the_features_of_the_quantized_trunk(self, own_run, search):
        seen = []

        class Watched(Means):
            def solve(self, features, labels, classes, seed):
                seen.append((features, labels, seed))
                return super().solve(features, labels, classes, seed)

        search(Watched())
        ((features, labels, seed),) = seen
        bundle = open_bundle(own_run)
        from tlkit.data.preprocessing import load
        from tlkit.model import reference_images

        train = reference_images.dataset(bundle)[1].of("train")
        images = np.stack([load(sample.path, bundle.record.preprocessing) for sample in train])
        given = OnnxSession(own_run / "onnx/int8/trunk.onnx").run(images)[FEATURES]
        assert np.allclose(features, given, atol=1e-6)
        assert labels.tolist() == [sample.label for sample in train]
        assert seed == bundle.record.seed

    def test_a_worse_head_is_told_of_and_left_out(self, own_run, search):
        _, found = search(Means(sharpness=0.0))
        assert found.candidates[0].head.kept is False
        assert found.candidates[0].accuracy == found.candidates[0].head.own_accuracy
        assert record(own_run)["head_from"] == "bundle"
        assert export_of(own_run, "int8").refitted() is None
        assert metadata(own_run / "onnx/int8/model.onnx")["tlkit.head_from"] == "bundle"
        assert replayed(own_run, "int8").passed

    def test_where_both_call_as_many_rightly_the_log_loss_decides(self):
        features, truth = np.eye(3, dtype=np.float32), np.arange(3)

        class Given:
            module = None

            def __init__(self, sharpness):
                self.probabilities = lambda features: softmax(features * np.float32(sharpness))

        own = ModelOutputs({FEATURES: features, PROBABILITIES: softmax(features * 5)}, truth, {})
        for sharpness, kept in ((6, True), (5, False), (4, False), (-6, False)):
            head, again, chosen = better(own, Given(sharpness))
            assert (head is not None, again.kept) == (kept, kept)
            assert again.own_accuracy == 1
            assert np.array_equal(chosen.arrays[PROBABILITIES], softmax(features * (sharpness if kept else 5)))


class TestRefused:
    def test_a_head_that_learns_by_gradient(self, own_run, search):
        with pytest.raises(UsageError, match=r"head line learns by gradient, .*leave out --refit-head"):
            search(Line())
        assert not (own_run / "onnx/int8").exists()

    def test_images_that_are_gone(self, own_run, search):
        forget_source(own_run)
        with pytest.raises(DataError, match="not on this machine any more"):
            search(Means())

    def test_other_precisions(self, own_run, capsys):
        assert cli.run(["export", str(own_run), "--onnx", "--precision", "fp16", "--refit-head"]) == 2
        assert "--refit-head is for --precision int8" in capsys.readouterr().err

    def test_fp16_keeps_the_bundles_head(self, own_run, search):
        _, found = search(Means(), "fp16")
        assert found.candidates[0].head is None
        assert record(own_run, "onnx/fp16")["head_from"] == "bundle"


def test_its_detector_is_scaled_on_the_validation_images_of_the_quantized_trunk(novel_run, novel_config, tmp_path):
    run = Path(shutil.copytree(novel_run, tmp_path / "run"))
    head = DetectingHead(Means(), next(iter(novel_config.detectors)))
    _, found = searched(run, novel_config.backbone, head, refit_head=True)
    assert found.candidates[0].head.kept
    kept = export_of(run, "int8").refitted()
    assert kept["novelty.scale"] != open_bundle(run).head["novelty.scale"]
    names = reference_images.dataset(open_bundle(run), None)[1].of("val")
    with Model.open(run / "onnx/int8") as model:
        novelty = [each.novelty for each in model.predict([sample.path for sample in names])]
    assert np.median(novelty) == pytest.approx(0, abs=0.05)
    assert 0.9 < max(novelty) <= 1  # nine images: all stay known
    assert replayed(run, "int8").passed


class TestVerify:
    @pytest.fixture
    def refitted(self, own_run, search):
        search(Means())
        return own_run

    def test_it_passes_and_says_whose_head_it_is(self, refitted):
        result = replayed(refitted, "int8")
        assert (result.passed, result.problems, result.head_from) == (True, (), "export")
        alone = replayed_alone(refitted, refitted / "onnx/int8/model.onnx")
        assert (alone.passed, alone.problems) == (True, ())

    @pytest.mark.parametrize("fault", FAULTS)
    def test_planted_faults_are_caught(self, refitted, fault):
        file = refitted / "onnx/int8/model.onnx"
        assert planted(fault, file)
        resign(refitted, "model.onnx", "int8")
        assert not replayed(refitted, "int8").passed

    def test_the_bundles_own_head_in_its_place_is_caught(self, refitted, tmp_path, search):
        shutil.copytree(refitted / "onnx/int8", tmp_path / "refitted")
        search(Means(sharpness=0.0))  # not kept
        result = replayed_alone(refitted, tmp_path / "refitted/model.onnx")
        assert not result.passed
        assert "its head is not the one from the bundle, which the manifest names" in result.problems[0]

    def test_alone_without_the_record_of_what_it_gave_it_can_not_be_proven(self, refitted, tmp_path):
        shutil.move(refitted / "onnx/int8", tmp_path / "deployed")
        with pytest.raises(ArtifactError, match=r"its head was refitted at export, and .*int8.* is not there"):
            replayed_alone(refitted, tmp_path / "deployed/model.onnx")

    def test_a_changed_head_beside_the_graphs_is_refused(self, refitted):
        (refitted / "onnx/int8" / exports.REFITTED).write_bytes(b"")
        with pytest.raises(ArtifactError, match="its head is missing or was changed after export"):
            export_of(refitted, "int8").refitted()

    def test_modules_with_that_head_give_the_same(self, refitted):
        features = open_bundle(refitted).expected()[FEATURES]
        given = OnnxSession(refitted / "onnx/int8/head.onnx").run(features)[LOGITS]
        trained = modules(refitted, Tiny(), Means())
        its, own = (trained.head_outputs(export_of(refitted, name).refitted()) for name in ("int8", "fp32"))
        assert np.allclose(its(features)[LOGITS], given, rtol=1e-4, atol=1e-3)
        assert not np.allclose(own(features)[LOGITS], given, rtol=1e-4, atol=1e-3)

    def test_another_target_has_that_head_too(self, refitted):
        from tlkit_standard.targets.onnx import Onnx

        class Copy(Onnx):
            name = "copy"

        bundle = open_bundle(refitted)
        built(bundle.root, Copy(), precision="int8")
        assert record(refitted, "copy/int8")["head_from"] == "export"
        assert np.array_equal(
            export_of(refitted, "int8", "copy").refitted()["weight"], export_of(refitted, "int8").refitted()["weight"]
        )
        assert replayed(bundle.root, "int8", "copy").passed
