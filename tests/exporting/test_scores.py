"""A head with scores beside its logits and sigmoids for probabilities, from training to a prediction."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import numpy_helper

from tests.kit import exporting
from tests.kit.exporting import exported, modules, replayed, replayed_alone
from tests.kit.tiny import Scored, Tiny, resign
from tlkit import cli
from tlkit.data.preprocessing import load
from tlkit.errors import ArtifactError
from tlkit.exporting.shared_trunk import export_shared_trunk
from tlkit.exporting.triton import export_triton
from tlkit.graph.metadata import read_metadata
from tlkit.model.bundle import open_bundle
from tlkit.model.reference_images import golden_pixels
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES
from tlkit.runtime.engine import Opener
from tlkit.runtime.model import Model
from tlkit.runtime.session import HeadSession, OnnxSession
from tlkit.training.run import train
from tlkit.util.statistics import activated
from tlkit.verification.run import verify

PRECISIONS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def run(pictures, tiny_config, tmp_path_factory):
    run = tmp_path_factory.mktemp("scores") / "run"
    train(pictures, run, replace(tiny_config, head=Scored()))
    for precision in PRECISIONS:
        exported(run, Tiny(), Scored(), precision)
    return run


@pytest.fixture
def changed(run, tmp_path):
    """`changed(graph, change)`: a copy of the bundle whose graph was changed and signed again."""
    copy = shutil.copytree(run, tmp_path / "run")

    def plant(name, change, precision="fp32"):
        file = copy / "onnx" / precision / name
        graph = onnx.load(file)
        change(graph.graph)
        onnx.save(graph, file)
        resign(copy, name, precision)
        return copy

    return plant


def scaled(graph):
    """Multiply the score `energy` by 1.1."""
    maker = next(node for node in graph.node if "energy" in node.output)
    maker.output[list(maker.output).index("energy")] = "energy.trained"
    graph.initializer.append(numpy_helper.from_array(np.float32(1.1), "energy.factor"))
    graph.node.append(onnx.helper.make_node("Mul", ["energy.trained", "energy.factor"], ["energy"]))


def test_the_bundle_keeps_scores_and_activation(run):
    bundle = open_bundle(run)
    assert (bundle.record.scores, bundle.record.activation) == (("energy", "margin"), "sigmoid")
    expected = bundle.expected()
    assert {name: array.shape for name, array in expected.items()} == {
        FEATURES: (4, 8), LOGITS: (4, 3), "energy": (4,), "margin": (4,)
    }  # fmt: skip
    logits = expected[LOGITS].astype(np.float64)
    assert np.allclose(expected["energy"], -np.log(np.exp(logits).sum(1)), atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_are_exported_and_verified_in_every_precision(run, precision):
    session = OnnxSession(run / f"onnx/{precision}/model.onnx")
    assert session.outputs == (FEATURES, LOGITS, "energy", "margin", PROBABILITIES)
    got = session.run(golden_pixels(open_bundle(run)))
    assert got["margin"].shape == (4,)
    assert np.allclose(got[PROBABILITIES], 1 / (1 + np.exp(-got[LOGITS])), atol=1e-5)
    result = replayed(run, precision)
    assert result.passed
    assert result.verdicts["model"].comparisons[0].score_error < 1e-2
    assert "score error" in result.verdicts["head"].summary()
    assert replayed_alone(run, run / f"onnx/{precision}/model.onnx").passed


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["model.onnx", "head.onnx"])
def test_a_tampered_score_is_found(changed, name, precision):
    result = replayed(changed(name, scaled, precision), precision)
    assert [graph for graph, verdict in result.verdicts.items() if not verdict.passed] == [name.split(".")[0]]


def test_a_score_that_is_missing_is_found(changed):
    def drop(graph):
        graph.output.remove(next(output for output in graph.output if output.name == "energy"))

    assert not replayed(changed("model.onnx", drop)).passed


def test_another_activation_is_found(changed, run):
    def to_softmax(graph):
        node = next(node for node in graph.node if PROBABILITIES in node.output)
        node.op_type = "Softmax"

    assert not replayed(changed("model.onnx", to_softmax)).passed
    props = {**OnnxSession(run / "onnx/fp32/model.onnx").metadata}
    assert props["tlkit.activation"] == "sigmoid"
    with pytest.raises(ArtifactError, match="activation must be one of softmax, sigmoid, not 'tanh'"):
        read_metadata({**props, "tlkit.activation": "tanh"}, run)


def test_a_prediction_has_the_scores(run, pictures, capsys):
    image = pictures / "light/00.png"
    (prediction,) = Model.open(run).predict(image)
    pixels = load(image, open_bundle(run).record.preprocessing)[None]
    got = OnnxSession(run / "onnx/fp32/model.onnx").run(pixels)
    assert prediction.scores == pytest.approx({name: got[name][0] for name in ("energy", "margin")}, abs=1e-5)
    assert cli.run(["predict", str(run), str(image), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["scores"] == pytest.approx(prediction.scores, abs=1e-6)
    assert said["predictions"][0]["label"] == prediction.label == "light"


def test_a_dataset_is_evaluated_and_verified(run, pictures):
    assert Model.open(run).evaluate(pictures).metrics.accuracy > 0.9
    trained = modules(run, Tiny(), Scored())
    session = trained.session()
    assert np.allclose(
        session.run(golden_pixels(open_bundle(run)))[PROBABILITIES],
        activated(open_bundle(run).expected()[LOGITS], "sigmoid"),
        atol=1e-5,
    )
    assert verify(open_bundle(run), Opener(lambda _: None), trained=trained, data=pictures).passed


def test_other_targets_and_servers_have_them_too(run, tmp_path):
    from tests.exporting.test_targets import Folded

    copy = shutil.copytree(run, tmp_path / "run")
    built = exporting.built(copy, Folded(), modules=modules(copy, Tiny(), Scored()))
    assert built.verdicts["model"].comparisons[0].score_error < 1e-3
    with np.load(copy / "folded/fp32/model.folded/outputs.npz") as kept:
        assert {"energy", "margin", PROBABILITIES} <= set(kept)
    bundles = [open_bundle(copy), open_bundle(shutil.copytree(copy, tmp_path / "other"))]
    shared = export_shared_trunk(bundles, tmp_path / "shared")
    session = HeadSession(OnnxSession(shared.folder / "model.onnx"), "other")
    assert session.outputs == (FEATURES, LOGITS, "energy", "margin", PROBABILITIES)
    assert session.metadata["tlkit.activation"] == "sigmoid"
    assert export_triton(bundles[:1], tmp_path / "models").verdicts["run"].passed


def test_triton_reshapes_a_score_to_a_row(run, tmp_path):
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient").ModelConfig
    export_triton([open_bundle(run)], tmp_path)
    head, ensemble = (
        text_format.Parse((tmp_path / name / "config.pbtxt").read_text(), config()) for name in ("run-head", "run")
    )
    for written, reshaped in ((head, True), (ensemble, False)):
        output = next(output for output in written.output if output.name == "energy")
        assert (list(output.dims), output.HasField("reshape")) == ([1], reshaped)
