"""Training: the bundle holds what the deployed trunk and the fitted head give, and nothing is half-written."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.kit.tiny import Line, write_images
from tlkit.data.preprocessing import load
from tlkit.errors import DataError, UsageError
from tlkit.model import reference_images
from tlkit.model.bundle import open_bundle
from tlkit.model.modules import load_modules, run_modules
from tlkit.plugin.contract import FEATURES, LOGITS, DatasetStatistics, Phase, Strategy
from tlkit.training.inputs import Examples
from tlkit.training.phases import check_phases
from tlkit.training.run import train
from tlkit.training.trainer import Setting, fit_head


def test_the_record_says_what_was_done(tiny_run, tiny_recipe, pictures):
    record = open_bundle(tiny_run).record
    assert record.labels == ("dark", "light", "middle")
    assert (record.stages, record.cut, record.width) == (("first", "second"), "second", 8)
    assert record.preprocessing == tiny_recipe.backbone.preprocessing
    assert (record.backbone.name, record.backbone.distribution) == ("tiny", "tiny")
    assert record.strategy.options == {"epochs": 200, "lr": 0.1}
    assert record.phases[0]["epochs"] == 200
    assert record.data["images"]["train"] + record.data["images"]["val"] == 36
    assert str(pictures) not in (tiny_run / "bundle.json").read_text()
    assert reference_images.source(open_bundle(tiny_run)) == pictures
    assert record.metrics["val"]["accuracy"] > 0.8
    history = [json.loads(line) for line in (tiny_run / "history.jsonl").read_text().splitlines()]
    assert len(history) == 200
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_only_the_kept_stages_are_stored(tiny_run):
    names = {name.split(".")[1] for name in open_bundle(tiny_run).trunk}
    assert names == {"first", "second"}


def test_golden_images_are_one_of_each_class_by_turns_with_what_they_give(tiny_run, tiny_recipe):
    bundle = open_bundle(tiny_run)
    labels = [golden.label for golden in bundle.record.golden]
    assert labels == [0, 1, 2, 0]
    trunk, head = load_modules(bundle, tiny_recipe.backbone, tiny_recipe.head)
    images = [load(content, bundle.record.preprocessing) for content in bundle.golden_bytes()]
    assert [hashlib.sha256(i.tobytes()).hexdigest() for i in images] == [g.pixels_sha256 for g in bundle.record.golden]
    got, expected = run_modules(trunk, head, np.stack(images)), bundle.expected()
    for name in (FEATURES, LOGITS):
        assert np.allclose(got[name], expected[name], atol=1e-4)


def test_the_same_seed_gives_the_same_bundle(pictures, tiny_recipe, tmp_path):
    first, second = (train(pictures, tmp_path / name, tiny_recipe).digest for name in ("a", "b"))
    assert first == second
    elsewhere = shutil.copytree(pictures, tmp_path / "elsewhere" / "images")
    assert train(elsewhere, tmp_path / "moved", tiny_recipe).digest == first
    assert train(pictures, tmp_path / "c", replace(tiny_recipe, seed=1)).digest != first


def test_no_golden_images_for_private_data(pictures, tiny_recipe, tmp_path):
    train(pictures, tmp_path / "run", replace(tiny_recipe, golden=0))
    assert not (tmp_path / "run" / "golden").exists()
    assert open_bundle(tmp_path / "run").record.golden == ()


def test_more_golden_images_than_there_are(pictures, tiny_recipe, tmp_path):
    trained = train(pictures, tmp_path / "run", replace(tiny_recipe, golden=1000))
    assert len(open_bundle(tmp_path / "run").record.golden) == trained.images["val"]


def test_a_second_head_decodes_no_image(pictures, tiny_recipe, tiny_run, tmp_path):
    assert tiny_run.exists()
    assert train(pictures, tmp_path / "run", replace(tiny_recipe, cut="third")).decoded == 0


class TestBadImages:
    @pytest.fixture
    def photos(self, tmp_path):
        return write_images(tmp_path / "photos", per_class=20)

    def test_a_few_are_listed_and_the_run_goes_on(self, photos, tiny_recipe, tmp_path):
        (photos / "dark" / "00.png").write_bytes(b"no image")
        trained = train(photos, tmp_path / "run", replace(tiny_recipe, max_bad=0.05))
        assert list(trained.rejected) == ["dark/00.png"]
        assert open_bundle(tmp_path / "run").record.data["rejected"] == dict(trained.rejected)

    def test_too_many_stop_it_and_nothing_is_written(self, photos, tiny_recipe, tmp_path):
        (photos / "dark" / "00.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"dark/00\.png: 1 of 60 images are unreadable.*--max-bad"):
            train(photos, tmp_path / "run", tiny_recipe)
        assert not (tmp_path / "run").exists()

    def test_a_class_that_loses_all_is_named(self, photos, tiny_recipe, tmp_path):
        for file in (photos / "dark").iterdir():
            file.write_bytes(b"no image")
        with pytest.raises(DataError, match=r"dark/.*no usable train image"):
            train(photos, tmp_path / "run", replace(tiny_recipe, max_bad=1.0))


def test_an_unknown_cut_is_refused(pictures, tiny_recipe, tmp_path):
    with pytest.raises(UsageError, match="first, second, third"):
        train(pictures, tmp_path / "run", replace(tiny_recipe, cut="nowhere"))


def test_an_existing_output_is_refused_before_any_work(tiny_recipe, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        train(tmp_path / "no photos", tmp_path / "run", tiny_recipe)
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize(
    ("phases", "problem"),
    [
        ((), "no phases"),
        ((Phase(0, 1e-3),), "phase 1 has 0 epochs"),
        ((Phase(1, 1e-3), Phase(1, 1e-3, trainable=3)), "phase 2 moves 3 stages of 2"),
    ],
)
def test_phases_that_can_not_be_run_are_refused(pictures, tiny_recipe, tmp_path, phases, problem):
    @dataclass(frozen=True)
    class Odd(Strategy):
        name = "odd"

        def phases(self, stages, facts):
            assert facts == DatasetStatistics(
                images=facts.images, classes=3, smallest_class=facts.smallest_class, largest_class=facts.largest_class
            )
            return phases

    with pytest.raises(UsageError, match=problem):
        train(pictures, tmp_path / "run", replace(tiny_recipe, strategy=Odd()))


class TestLoop:
    @pytest.fixture
    def examples(self):
        random = np.random.default_rng(0)
        features = random.normal(size=(200, 5)).astype(np.float32)
        labels = (features[:, 0] + features[:, 1] > 0).astype(np.int64)
        return Examples(features[:150], labels[:150]), Examples(features[150:], labels[150:])

    def test_learns(self, examples):
        torch.manual_seed(0)
        head, fitted = fit_head(Line().module(5, 2), [Phase(30, 0.05)], *examples, Setting(0))
        assert fitted.history[-1]["val_accuracy"] > 0.9
        assert not head.training

    def test_keeps_the_best_epoch(self, examples):
        torch.manual_seed(0)
        head, fitted = fit_head(Line().module(5, 2), [Phase(5, 0.05), Phase(3, 50.0)], *examples, Setting(0))
        losses = [line["val_loss"] for line in fitted.history]
        with torch.inference_mode():
            logits = head(torch.from_numpy(examples[1].features))
        kept = torch.nn.functional.cross_entropy(logits, torch.from_numpy(examples[1].labels)).item()
        assert kept == pytest.approx(min(losses), rel=1e-5)
        assert min(losses) < losses[-1]

    def test_a_loss_that_is_not_finite_stops_and_says_where(self, examples):
        train_set, val_set = examples
        spoiled = Examples(train_set.features * np.float32(1e38), train_set.labels)
        with pytest.raises(DataError, match="phase 1, epoch 1, at rate 1e"):
            fit_head(Line().module(5, 2), [Phase(2, 1e20)], spoiled, val_set, Setting(0))

    def test_rates_follow_a_cosine(self, examples):
        _, fitted = fit_head(Line().module(5, 2), [Phase(4, 1.0)], *examples, Setting(0))
        expected = [(1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(4)]
        assert [line["lr"] for line in fitted.history] == pytest.approx(expected)

    def test_all_problems_of_phases_are_named_at_once(self):
        with pytest.raises(UsageError, match=r"phase 1 has 0 epochs; phase 2 moves 9 stages of 2"):
            check_phases([Phase(0, 1), Phase(1, 1, trainable=9)], ["a", "b"])
