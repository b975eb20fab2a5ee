"""From files to arrays: in order, rejects in their place, the same whatever the number of workers."""

from __future__ import annotations

import hashlib
import shutil
import threading

import numpy as np
import onnx
import pytest

from tlkit.data.preprocessing import load
from tlkit.errors import ArtifactError, DataError
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, PROBABILITIES, Preprocessing, Session
from tlkit.runtime import model as runtime
from tlkit.runtime.model import Model, stream
from tlkit.runtime.session import OnnxSession


@pytest.fixture
def files(pictures):
    return sorted(pictures.rglob("*.png"))


@pytest.fixture
def model(tiny_run):
    return Model.open(tiny_run)


class Counting(Session):
    """Gives the mean of each image, and remembers how many calls ran at once."""

    input, outputs, metadata = IMAGES, ("mean",), {}

    def __init__(self, workers):
        self.workers, self.now, self.most = workers, 0, 0
        self.lock = threading.Lock()

    def run(self, array, outputs=None):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        mean = array.mean((1, 2, 3), dtype=np.float64).astype(np.float32)[:, None]
        with self.lock:
            self.now -= 1
        return {"mean": mean}


PREPROCESSING = Preprocessing(16, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_rows_come_in_the_order_of_the_files(files, workers):
    session = Counting(workers)
    chunks = list(stream(session, PREPROCESSING, files, hashed=True))
    rows = [row for chunk in chunks for row in chunk.rows]
    assert [row.file for row in rows] == files
    assert [row.sha256 for row in rows] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    expected = [load(file, PREPROCESSING).mean(dtype=np.float64) for file in files]
    assert np.concatenate([chunk.arrays["mean"] for chunk in chunks])[:, 0] == pytest.approx(expected)
    if workers == 1:
        assert session.most == 1  # they take turns


def test_rejects_stand_in_their_place(files, tmp_path):
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(b"no image")
    mixed = [broken, files[0], missing, *files[1:10], broken]
    chunks = list(stream(Counting(2), PREPROCESSING, mixed, hashed=True))
    rows = [row for chunk in chunks for row in chunk.rows]
    assert [row.file for row in rows] == mixed
    assert [index for index, row in enumerate(rows) if row.reason] == [0, 2, 12]
    assert rows[2].sha256 == ""
    assert sum(len(chunk.arrays.get("mean", ())) for chunk in chunks) == 10
    assert all(len(chunk.kept()) == len(chunk.arrays.get("mean", ())) for chunk in chunks)


def test_without_being_asked_no_file_is_hashed(files):
    assert {row.sha256 for chunk in stream(Counting(2), PREPROCESSING, files) for row in chunk.rows} == {""}


def test_a_chunk_without_a_usable_image_has_no_arrays(tmp_path):
    chunks = list(stream(Counting(1), PREPROCESSING, [tmp_path / "none.jpg"]))
    assert [chunk.arrays for chunk in chunks] == [{}]


def test_no_files_give_no_chunks():
    assert list(stream(Counting(1), PREPROCESSING, [])) == []


def test_only_so_many_files_are_read_ahead(files):
    asked = []

    def source():
        for file in files * 20:
            asked.append(file)
            yield file

    next(stream(Counting(2), PREPROCESSING, source()))
    assert len(asked) <= (2 * max(2, runtime.cores()) + 1) * Counting.batch_size


def test_an_error_in_the_session_reaches_the_caller(files):
    class Failing(Counting):
        def run(self, array, outputs=None):
            raise ArtifactError("broken engine")

    with pytest.raises(ArtifactError, match="broken engine"):
        list(stream(Failing(2), PREPROCESSING, files))


def test_model_carries_labels_and_recipe(model, tiny_recipe):
    assert model.labels == ("dark", "light", "middle")
    assert model.preprocessing == tiny_recipe.backbone.preprocessing
    assert model.session.outputs == (FEATURES, LOGITS, PROBABILITIES)


def test_predictions_are_right_and_best_first(model, files):
    predictions = model.predict(files, topk=3)
    assert all(set(p.labels) == set(model.labels) for p in predictions)
    assert all(sum(p.probabilities) == pytest.approx(1, abs=1e-5) for p in predictions)
    assert all(list(p.probabilities) == sorted(p.probabilities, reverse=True) for p in predictions)
    right = sum(p.labels[0] == p.file.parent.name for p in predictions)
    assert right >= 0.9 * len(files)


def test_workers_change_nothing(tiny_run, files):
    one, two = (Model.open(tiny_run, workers=workers).embed(files) for workers in (1, 2))
    assert one.shape == (len(files), 8)
    assert np.allclose(one, two, atol=1e-5)


def test_embed_names_a_file_that_can_not_be_used(model, files, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        model.embed([files[0], tmp_path / "broken.jpg"])


def test_trunk_and_model_give_the_same_features(tiny_run, files):
    assert np.array_equal(Model.open(tiny_run, graph="trunk").embed(files), Model.open(tiny_run).embed(files))


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


class TestByProducts:
    """A bundle's by-product is opened only if it is the bundle's."""

    def test_none_yet_names_the_command(self, own_run):
        shutil.rmtree(own_run / "onnx")
        with pytest.raises(ArtifactError, match=r"not exported yet; run: tlkit export .* --onnx"):
            Model.open(own_run)

    def test_a_changed_graph_is_refused(self, own_run):
        with (own_run / "onnx/fp32/model.onnx").open("ab") as file:
            file.write(b"\0")
        with pytest.raises(ArtifactError, match="changed after export"):
            Model.open(own_run)

    def test_those_of_another_bundle_are_refused(self, own_run, tiny_recipe, pictures, tmp_path):
        from dataclasses import replace

        from tlkit.training.run import train

        train(pictures, tmp_path / "other", replace(tiny_recipe, cut="first"))
        shutil.copytree(own_run / "onnx", tmp_path / "other/onnx")
        with pytest.raises(ArtifactError, match="from another bundle"):
            Model.open(tmp_path / "other")

    def test_a_folder_that_is_no_bundle(self, tmp_path):
        with pytest.raises(ArtifactError, match="neither a graph nor a bundle"):
            Model.open(tmp_path)


def test_sessions_run_from_many_threads_at_once(tiny_run, files, tiny_recipe):
    session = OnnxSession(tiny_run / "onnx/fp32/trunk.onnx", workers=4)
    images = np.stack([load(file, tiny_recipe.backbone.preprocessing) for file in files[:4]])
    expected = session.run(images)[FEATURES]
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(session.run(images)[FEATURES])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(np.array_equal(result, expected) for result in results)
