"""Models: predict, embed and evaluate."""

from __future__ import annotations

import shutil
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tlkit.data.dataset import read
from tlkit.data.preprocessing import load
from tlkit.errors import ArtifactError, DataError, UsageError
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES
from tlkit.runtime.model import Model
from tlkit.runtime.session import OnnxSession


@pytest.fixture
def files(pictures):
    return sorted(pictures.rglob("*.png"))


@pytest.fixture
def model(tiny_run):
    return Model.open(tiny_run)


def test_model_carries_labels_and_preprocessing(model, tiny_config):
    assert model.labels == ("dark", "light", "middle")
    assert model.preprocessing == tiny_config.backbone.preprocessing
    assert model.session.outputs == (FEATURES, LOGITS, PROBABILITIES)


def test_predictions_are_right_and_best_first(model, files):
    predictions = model.predict(files, topk=3)
    assert all(set(p.labels) == set(model.labels) for p in predictions)
    assert all(sum(p.probabilities) == pytest.approx(1, abs=1e-5) for p in predictions)
    assert all(list(p.probabilities) == sorted(p.probabilities, reverse=True) for p in predictions)
    right = sum(p.label == Path(p.name).parent.name for p in predictions)
    assert right >= 0.9 * len(files)


def test_every_kind_of_input_gives_the_same_prediction(model, files):
    expected = model.predict(files[0], topk=3)[0]
    content = files[0].read_bytes()
    image = Image.open(BytesIO(content))
    array = np.asarray(image.convert("RGB"))
    for single in (str(files[0]), content, image, array, array[None]):
        (prediction,) = model.predict(single, topk=3)
        assert prediction.labels == expected.labels
        assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    mixed = model.predict([files[0], str(files[0]), content, image, array, np.stack([array, array])])
    assert [prediction.label for prediction in mixed] == [expected.label] * 7
    assert [prediction.name for prediction in mixed][:3] == [str(files[0]), str(files[0]), "image 2"]
    assert np.allclose(model.embed([content, array]), model.embed([files[0], files[0]]), atol=1e-5)


def test_a_prediction_has_a_label_and_its_probability(model, files, tmp_path):
    readable, unreadable = model.predict([files[0], tmp_path / "none.jpg"], topk=2)
    assert (readable.label, readable.probability) == (readable.labels[0], readable.probabilities[0])
    assert (unreadable.label, unreadable.probability, unreadable.reason) == (None, None, "no such file")


def test_a_prediction_has_at_least_one_label(model, files):
    assert len(model.predict(files[0], topk=99)[0].labels) == 3
    with pytest.raises(UsageError, match="topk must be at least 1, not 0"):
        model.predict(files[0], topk=0)
    with pytest.raises(UsageError, match=r"topk must be at least 1, not 1\.5"):
        model.predict(files[0], topk=1.5)


def test_an_open_file_is_no_image(model, files):
    with files[0].open("rb") as file, pytest.raises(UsageError, match="'BufferedReader' is not an image"):
        model.predict(file)


def test_no_images_give_no_features(model):
    assert model.embed([]).shape == (0, 8)
    assert model.predict([]) == []


def test_a_model_is_closed_by_with(tiny_run, files):
    with Model.open(tiny_run) as model:
        assert model.predict(files[0])
    with pytest.raises(UsageError, match="the session is closed"):
        model.predict(files[0])


def test_a_session_of_any_target_is_a_model(tiny_run, files):
    file = tiny_run / "onnx/fp32/model.onnx"
    model = Model.from_session(OnnxSession(file), file)
    assert model.predict(files)[0] == Model.open(file, workers=1).predict(files)[0]
    with pytest.raises(UsageError, match="it has one head"):
        Model.from_session(OnnxSession(file), file, head="other")


def test_an_unknown_device_is_refused(tiny_run):
    with pytest.raises(UsageError, match="there is no device 'tpu'; choose one of cpu, cuda, tensorrt"):
        Model.open(tiny_run, device="tpu")


def test_a_labeled_dataset_is_evaluated(model, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "set")
    (tmp_path / "set/dark/00.png").write_bytes(b"no image")
    result = model.evaluate(str(tmp_path / "set"))
    assert (result.split, result.labels, list(result.rejected)) == (
        "all",
        model.labels,
        [str(tmp_path / "set/dark/00.png")],
    )
    assert result.metrics.images == 35
    assert result.metrics.accuracy >= 0.9
    assert result.to_json()["accuracy"] == result.metrics.accuracy
    text = str(result).splitlines()
    assert result.trained_on == result.to_json()["trained_on"] == len(read(pictures).of("train")) - 1
    assert text[1] == f"trained on {result.trained_on} of these 35: figures of new images are lower"
    assert text[2].startswith(f"accuracy           {result.metrics.accuracy:.1%} (95 % interval ")
    assert text[-4].split() == [*model.labels, "recall"]
    assert [line.split()[0] for line in text[-3:]] == list(model.labels)


def test_workers_change_nothing(tiny_run, files):
    one, two = (Model.open(tiny_run, workers=workers).embed(files) for workers in (1, 2))
    assert one.shape == (len(files), 8)
    assert np.allclose(one, two, atol=1e-5)


def test_embed_names_an_unreadable_image(model, files, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        model.embed([files[0], tmp_path / "broken.jpg"])


def test_trunk_and_model_give_the_same_features(tiny_run, files):
    trunk, model = Model.open(tiny_run, graph="trunk").embed(files), Model.open(tiny_run).embed(files)
    assert np.allclose(trunk, model, rtol=1e-5, atol=1e-5)  # fused differently, graphs round differently


def test_the_trunk_alone_can_not_predict(tiny_run, files):
    with pytest.raises(ArtifactError, match=r"use model\.onnx"):
        Model.open(tiny_run / "onnx/fp32/trunk.onnx").predict(files)


def test_a_graph_of_somebody_else_is_refused(tiny_run, tmp_path):
    graph = onnx.load(tiny_run / "onnx/fp32/model.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "bare.onnx")
    for file in (tmp_path / "bare.onnx", tiny_run / "onnx/fp32/head.onnx"):
        with pytest.raises(ArtifactError, match="not a graph that tlkit exported from images"):
            Model.open(file)


@pytest.mark.parametrize("value", ["", "{}", "[]", '{"size": 0}', "\x00"])
def test_a_graph_whose_facts_make_no_sense_is_refused(tiny_run, tmp_path, value):
    graph = onnx.load(tiny_run / "onnx/fp32/model.onnx")
    for prop in graph.metadata_props:
        if prop.key == "tlkit.preprocessing":
            prop.value = value
    onnx.save(graph, tmp_path / "odd.onnx")
    with pytest.raises(ArtifactError):
        Model.open(tmp_path / "odd.onnx")


class TestExports:
    """An export in a bundle is opened only if it was exported from that bundle."""

    def test_none_yet_names_the_command(self, own_run):
        shutil.rmtree(own_run / "onnx")
        with pytest.raises(ArtifactError, match=r"not exported yet; run: tlkit export .* --onnx"):
            Model.open(own_run)

    def test_a_changed_graph_is_refused(self, own_run):
        with (own_run / "onnx/fp32/model.onnx").open("ab") as file:
            file.write(b"\0")
        with pytest.raises(ArtifactError, match="changed after export"):
            Model.open(own_run)

    def test_those_of_another_bundle_are_refused(self, own_run, tiny_config, pictures, tmp_path):
        from dataclasses import replace

        from tlkit.training.run import train

        train(pictures, tmp_path / "other", replace(tiny_config, cut="first"))
        shutil.copytree(own_run / "onnx", tmp_path / "other/onnx")
        with pytest.raises(ArtifactError, match="from another bundle"):
            Model.open(tmp_path / "other")

    def test_a_folder_that_is_no_bundle(self, tmp_path):
        with pytest.raises(ArtifactError, match="neither a graph nor a bundle"):
            Model.open(tmp_path)


def test_sessions_run_from_many_threads_at_once(tiny_run, files, tiny_config):
    session = OnnxSession(tiny_run / "onnx/fp32/trunk.onnx", workers=4)
    images = np.stack([load(file, tiny_config.backbone.preprocessing) for file in files[:4]])
    expected = session.run(images)[FEATURES]
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(session.run(images)[FEATURES])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(np.array_equal(result, expected) for result in results)
