"""A model repository, read by NVIDIA's own definition of its format and run as its ensembles say."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tlkit.data.preprocessing import load
from tlkit.errors import UsageError
from tlkit.exporting import triton
from tlkit.exporting.triton import export_triton, quoted
from tlkit.model.bundle import open_bundle
from tlkit.model.reference_images import golden_pixels
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, PROBABILITIES, Preprocessing
from tlkit.runtime.session import OnnxSession

TYPES = {np.dtype(np.uint8): 2, np.dtype(np.float32): 11}  # of model_config.proto


def config(repository, name):
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), ModelConfig())


def serve(repository, name, images):
    """Serve as Triton does: check the arrays against the configuration and run the steps of an ensemble in order."""
    wanted = config(repository, name)
    assert wanted.name == name
    known = {IMAGES: images}
    for step in wanted.ensemble_scheduling.step:
        model = config(repository, step.model_name)
        session = OnnxSession(repository / step.model_name / "1" / model.default_model_filename)
        assert [each.name for each in model.input] == [session.input]
        given = known[step.input_map[session.input]]
        assert TYPES[given.dtype] == model.input[0].data_type
        assert list(given.shape[1:]) == list(model.input[0].dims)
        got = session.run(given)
        assert {each.name for each in model.output} == set(got)
        for output in model.output:
            assert list(got[output.name].shape[1:]) == list(output.dims)
            assert TYPES[got[output.name].dtype] == output.data_type
        known |= {step.output_map[tensor]: got[tensor] for tensor in step.output_map}
    return {output.name: known[output.name] for output in wanted.output}


@pytest.fixture(scope="module")
def repository(tiny_run, tmp_path_factory):
    place = tmp_path_factory.mktemp("served") / "repository"
    export_triton([open_bundle(tiny_run)], place)
    return place


def test_the_ensemble_answers_as_the_model_does(tiny_run, repository):
    images = golden_pixels(open_bundle(tiny_run))
    got = serve(repository, "run", images)
    expected = OnnxSession(tiny_run / "onnx/fp32/model.onnx").run(images)
    assert set(got) == {FEATURES, LOGITS, PROBABILITIES}
    for name, array in got.items():
        assert array == pytest.approx(expected[name], abs=1e-6)


def test_a_client_finds_labels_and_preprocessing(tiny_run, repository):
    wanted = config(repository, "run")
    labelled = next(output for output in wanted.output if output.label_filename)
    assert labelled.name == PROBABILITIES
    bundle = open_bundle(tiny_run)
    assert (repository / "run" / labelled.label_filename).read_text().splitlines() == list(bundle.record.labels)
    preprocessing = json.loads(wanted.parameters["tlkit.preprocessing"].string_value)
    preprocessing = Preprocessing(
        **{**preprocessing, "mean": tuple(preprocessing["mean"]), "std": tuple(preprocessing["std"])}
    )
    assert preprocessing == bundle.record.preprocessing
    content = bundle.golden_bytes()[0]
    assert np.array_equal(load(content, preprocessing), golden_pixels(bundle)[0])
    assert wanted.parameters["tlkit.bundle"].string_value == bundle.digest
    assert wanted.max_batch_size > 1


def test_another_head_leaves_the_trunk_untouched(tiny_run, repository, tmp_path):
    place = shutil.copytree(repository, tmp_path / "repository")
    second = shutil.copytree(tiny_run, tmp_path / "second")
    trunk = next(place.glob("tiny-second-*/1/model.onnx"))
    before = trunk.stat()
    made = export_triton([open_bundle(second)], place)
    assert made.models == ("second-head", "second")
    assert (trunk.stat().st_mtime_ns, trunk.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(file.parent.name for file in place.glob("*/config.pbtxt")) == sorted(
        ["run", "run-head", "second", "second-head", trunk.parent.parent.name]
    )
    images = golden_pixels(open_bundle(second))
    assert np.array_equal(serve(place, "second", images)[LOGITS], serve(place, "run", images)[LOGITS])


def test_the_model_of_somebody_else_is_not_written_over(tiny_run, tmp_path):
    theirs = tmp_path / "run" / "config.pbtxt"
    theirs.parent.mkdir()
    theirs.write_text('name: "run"\n')
    with pytest.raises(UsageError, match=r"run: there is a model of this name that tlkit did not write"):
        export_triton([open_bundle(tiny_run)], tmp_path)
    assert theirs.read_text() == 'name: "run"\n'
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("stranger", ["2/model.onnx", "photo.jpg"])
def test_files_of_somebody_else_beside_ours_are_not_lost(tiny_run, repository, tmp_path, stranger):
    place = shutil.copytree(repository, tmp_path / "models")
    (place / "run-head" / stranger).parent.mkdir(exist_ok=True)
    (place / "run-head" / stranger).touch()
    with pytest.raises(UsageError, match=rf"run-head: it holds files that tlkit did not write, .*{stranger}"):
        export_triton([open_bundle(tiny_run)], place)
    assert (place / "run-head" / stranger).exists()


def test_labels_are_utf8_in_any_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "iso-8859-1")  # as that of the locale
    labels, outputs = ("Käfer", "蜂"), {PROBABILITIES: ("TYPE_FP32", (2,))}
    triton._write_ensemble(tmp_path / "蜂", labels, [], {}, outputs, {"of": "Käfer"})
    assert (tmp_path / "蜂" / "labels.txt").read_bytes().decode().splitlines() == list(labels)
    assert "Käfer" in (tmp_path / "蜂" / "config.pbtxt").read_bytes().decode()


@pytest.mark.parametrize("text", ['a "b"', "back\\slash", "tab\tand\nline", "Grüße 象", "\x01"])
def test_any_text_survives_the_format(text):
    assert text_format.Parse(f"name: {quoted(text)}", ModelConfig()).name == text


def test_the_verb_writes_it_and_says_how_to_serve(own_run, tlkit, tmp_path):
    done = tlkit("export", own_run, "--triton", tmp_path / "served", "--json")
    assert done.code == 0, done.err
    assert done.json["models"][1:] == ["run-head", "run"]
    assert done.next == f"tritonserver --model-repository {tmp_path / 'served'}"
    assert tlkit("export", own_run, "--triton", tmp_path / "served", "--onnx").code == 2
