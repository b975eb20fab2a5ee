"""The bundle holds what the deployed trunk and the fitted head give, and the same whatever folder the images are in."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.kit.course import fine_tuning
from tests.kit.tiny import Seeded
from tlkit.data.preprocessing import load
from tlkit.errors import DataError
from tlkit.model import reference_images
from tlkit.model.bundle import open_bundle
from tlkit.model.modules import load_modules, run_modules
from tlkit.plugin.contract import FEATURES, LOGITS, Augmentation, Phase
from tlkit.training import result
from tlkit.training.result import TrainingResult
from tlkit.training.run import train

FINE_TUNED = (
    Phase(2, 0.05),
    Phase(2, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, augmentation=Augmentation(crop=True), reinit=1),
)


def test_the_record_says_what_was_done(tiny_run, tiny_config):
    record = open_bundle(tiny_run).record
    assert record.labels == ("dark", "light", "middle")
    assert (record.stages, record.cut, record.width) == (("first", "second"), "second", 8)
    assert record.preprocessing == tiny_config.backbone.preprocessing
    assert (record.backbone.name, record.backbone.distribution) == ("tiny", "tiny")
    assert record.strategy.options == {"epochs": 200, "lr": 0.1}
    assert record.phases[0]["epochs"] == 200
    assert record.data["images"]["train"] + record.data["images"]["val"] == 36
    assert record.metrics["val"]["accuracy"] > 0.8
    history = [json.loads(line) for line in (tiny_run / "history.jsonl").read_text().splitlines()]
    assert len(history) == 200
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_only_the_kept_stages_are_stored(tiny_run):
    names = {name.split(".")[1] for name in open_bundle(tiny_run).trunk}
    assert names == {"first", "second"}


def test_golden_images_are_one_of_each_class_in_turn_with_their_outputs(tiny_run, tiny_config):
    bundle = open_bundle(tiny_run)
    labels = [golden.label for golden in bundle.record.golden]
    assert labels == [0, 1, 2, 0]
    trunk, head = load_modules(bundle, tiny_config.backbone, tiny_config.head)
    images = [load(content, bundle.record.preprocessing) for content in bundle.golden_bytes()]
    assert [hashlib.sha256(i.tobytes()).hexdigest() for i in images] == [g.array_sha256 for g in bundle.record.golden]
    got, expected = run_modules(trunk, head, np.stack(images)), bundle.expected()
    for name in (FEATURES, LOGITS):
        assert np.allclose(got[name], expected[name], atol=1e-4)


def test_no_golden_images_for_private_data(pictures, tiny_config, tmp_path):
    train(pictures, tmp_path / "run", replace(tiny_config, golden=0))
    assert not (tmp_path / "run" / "golden").exists()
    assert open_bundle(tmp_path / "run").record.golden == ()


def test_more_golden_images_than_there_are(pictures, tiny_config, tmp_path):
    trained = train(pictures, tmp_path / "run", replace(tiny_config, golden=1000))
    assert len(open_bundle(tmp_path / "run").record.golden) == trained.images["val"]


@pytest.fixture
def named(pictures, tmp_path):
    """A table of images by their absolute paths: JPEGs with EXIF, and a file that is no image."""
    exif, rows = Image.Exif(), ["path,label"]
    exif[0x013B] = exif[0x010E] = "Jane Doe"
    for file in sorted(pictures.rglob("*.png")):
        place = tmp_path / "Jane Doe" / file.parent.name / f"{file.stem}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(place, exif=exif)
        rows.append(f"{place},{place.parent.name}")
    (tmp_path / "Jane Doe/dark/bad.jpg").write_text("no image")
    rows.append(f"{tmp_path}/Jane Doe/dark/bad.jpg,dark")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/photos.csv").write_text("\n".join(rows))
    return tmp_path / "tables/photos.csv"


@pytest.mark.parametrize("strip", [False, True])
def test_golden_images_have_no_exif_and_tell_no_place(named, tiny_config, tmp_path, strip):
    config = replace(tiny_config, golden=3, golden_strip=strip, max_bad=0.5)
    trained = train(named, tmp_path / "run", config)
    told = b"".join(file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert b"Jane" not in told
    record = open_bundle(tmp_path / "run").record
    assert (list(record.data["rejected"]) == ["bad.jpg"]) == (not strip)
    assert (record.golden[0].name == "golden image 0") == strip
    assert record.golden[0].name.endswith(".jpg") == (not strip)
    assert list(trained.rejected) == [str(named.parents[1] / "Jane Doe/dark/bad.jpg")]
    assert "the bundle holds copies of 3 validation images for verify; --golden 0 leaves them out" in repr(trained)


def test_a_golden_image_that_can_not_be_stripped_is_kept_or_refused(named, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(result, "without_metadata", lambda _: [b"no image", (named.parents[1] / "x.png").read_bytes()])
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    config = replace(tiny_config, golden=1, max_bad=0.5)
    train(named, tmp_path / "run", config)
    assert b"Jane" in open_bundle(tmp_path / "run").golden_bytes()[0]
    with pytest.raises(DataError, match=r"its metadata can't be removed .* train with --golden 0"):
        train(named, tmp_path / "stripped", replace(config, golden_strip=True))


class TestIdentity:
    @pytest.mark.parametrize("phases", [None, FINE_TUNED], ids=["head", "fine-tuning"])
    def test_it_follows_from_data_options_and_seed_and_not_from_the_folder(
        self, pictures, tiny_config, tmp_path, phases
    ):
        config = replace(tiny_config, backbone=Seeded(), **(fine_tuning(*phases) if phases else {}))
        elsewhere = shutil.copytree(pictures, tmp_path / "another place" / "images")
        digests = []
        for number, (source, seed) in enumerate([(pictures, 0), (pictures, 0), (elsewhere, 0), (pictures, 1)]):
            torch.rand(number)  # what happened before plays no part
            digests.append(train(source, tmp_path / str(number), replace(config, seed=seed)).digest)
        assert digests[0] == digests[1] == digests[2] != digests[3]

    def test_nothing_in_the_bundle_says_where_or_by_whom_it_was_trained(self, tiny_run, pictures):
        text = (tiny_run / "bundle.json").read_text()
        for told in (str(pictures), str(pictures.parent), str(tiny_run), socket.gethostname(), os.path.expanduser("~")):
            assert f'"{told}' not in text
        assert f'"{getpass.getuser()}"' not in text
        assert "threads" not in text


class TestTrainingResult:
    @pytest.fixture(scope="class")
    def result(self, pictures, tiny_config, tmp_path_factory):
        out = tmp_path_factory.mktemp("result") / "run"
        phase = Phase(2, 0.05, trunk_lr=0.02, trainable=1, batch_size=8)
        return train(pictures, out, replace(tiny_config, **fine_tuning(phase)))

    def test_it_can_be_used_as_the_path_of_its_bundle(self, result):
        assert open_bundle(Path(result)).digest == result.digest

    def test_this_machine_knows_its_images(self, result, pictures):
        assert reference_images.source(open_bundle(result.bundle)) == pictures

    def test_it_prints_a_short_summary(self, result):
        text = str(result)
        assert "tiny up to third, strategy given, head line" in text
        assert f"validation accuracy {result.metrics.accuracy:.1%}" in text
        assert "1 of 3 stages changed: third fine-tuned" in text
        assert re.search(r"middle +\d+ +\d+ +\d+\.\d%", text)  # images of each split, and recall
        assert f"the most frequent class is {result.metrics.majority:.1%} of the images" in text
        few = {label: count for label, count in result.counts["val"].items() if count < 5}
        assert result.to_json()["few_validation"] == few
        assert ("too few validation images" in text) == bool(few)
        assert len(text.splitlines()) < 20

    def test_it_comes_back_from_json(self, result):
        facts = json.loads(json.dumps(result.to_json()))
        again = TrainingResult.from_json(facts, result.correct.tolist(), result.truth.tolist(), result.bundle)
        assert json.loads(json.dumps(again.to_json())) == facts
        assert np.array_equal(again.correct, result.correct)
        assert np.array_equal(again.truth, result.truth)
        assert np.array_equal(again.metrics.confusion, result.metrics.confusion)
        assert result.correct.mean() == pytest.approx(result.metrics.accuracy)
