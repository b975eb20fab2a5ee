"""Auto follows the advice deterministically, and keeps a fine-tuned trunk only if it is better."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from tlkit_standard.heads import HEADS
from tlkit_standard.heads.memory import Knn

from tests.advice.asking import ask, comparison, eager
from tests.kit.tiny import Line, write_images
from tlkit.advice import auto, trials
from tlkit.advice import run as advising
from tlkit.advice.auto import train_auto
from tlkit.advice.recommendation import FineTuningPolicy
from tlkit.advice.selection import HeadEvidence
from tlkit.errors import DataError, UsageError
from tlkit.model.bundle import open_bundle
from tlkit.training.config import RunOptions


def test_the_bundle_is_what_was_advised_and_keeps_the_advice(pictures, tmp_path):
    trained, advice = train_auto(pictures, tmp_path / "run", ask())
    record = open_bundle(tmp_path / "run").record
    recommendation = advice.recommendation
    assert (record.strategy.name, record.cut, record.head.name) == (
        recommendation.strategy,
        recommendation.cut,
        recommendation.head,
    )
    kept = record.strategy.report
    assert kept["recommendation"]["cut"] == record.cut
    assert [stage["stage"] for stage in kept["backbones"][0]["stages"]] == ["first", "second", "third"]
    assert trained.metrics.accuracy > 0.9


def test_the_same_data_and_seed_give_the_same_bundle(pictures, tmp_path):
    one, other = (train_auto(pictures, tmp_path / name, ask())[0].digest for name in ("one", "other"))
    assert one == other


@pytest.mark.usefixtures("own_cache")
def test_no_image_is_decoded_twice(pictures, tmp_path):
    trained, _ = train_auto(pictures, tmp_path / "run", ask())
    assert trained.decoded == trained.images["train"] + trained.images["val"]


def test_a_requested_cut_stays(pictures, tmp_path):
    trained, advice = train_auto(pictures, tmp_path / "run", ask(cut="first"))
    assert trained.cut == "first"
    assert advice.recommendation.cut == "first"


def test_at_a_requested_cut_heads_are_compared_and_the_trunk_stays_frozen(pictures, tmp_path):
    _, advice = train_auto(pictures, tmp_path / "run", ask(cut="first", policy=eager(1)))
    assert {each.stage for each in advice.heads} == {"first"}
    assert (advice.recommendation.strategy, advice.recommendation.cut) == ("frozen", "first")
    assert advice.recommendation.reasons == ("cut at first as requested; the trunk stays frozen then",)
    assert len(advice.analysis.stages) == 3


def test_of_many_images_the_default_head_is_in_place_before_heads_are_compared(pictures, tmp_path, monkeypatch):
    whole = train_auto(pictures, tmp_path / "whole", ask())[0].digest
    monkeypatch.setattr(advising, "SOON", 0)
    told = []

    def progress(what, _total):
        told.append(what)
        return lambda _more, _said="": None

    trained, advice = train_auto(pictures, tmp_path / "run", ask(), budget=0.0, progress=progress)
    assert (trained.head, trained.cut) == ("logistic", advice.evidence.cut.name)
    assert not advice.heads
    assert advice.recommendation.reasons[-1] == "heads are not compared yet, nor is fine-tuning tried"
    assert "comparing heads" not in told
    resumed, advice = train_auto(pictures, tmp_path / "run", ask(), RunOptions(resume=True))
    assert advice.heads
    assert resumed.digest == whole


def test_what_is_worse_on_val_beyond_its_error_does_not_replace_the_first(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(advising, "SOON", 0)
    part = auto.run_trial

    def run_trial(source, out, *rest, **kept):
        trial = part(source, out, *rest, **kept)
        worse = np.zeros_like(trial.trained.correct)
        return replace(trial, trained=replace(trial.trained, correct=worse)) if out.name == "frozen" else trial

    monkeypatch.setattr(auto, "run_trial", run_trial)
    monkeypatch.setattr(advising, "compare_heads", lambda *_, **__: [HeadEvidence("first", "knn", 0.99, 0.01, 40, 0.1)])
    trained, advice = train_auto(pictures, tmp_path / "run", ask())
    assert [each.head for each in advice.heads] == ["knn"]
    assert trained.head == advice.recommendation.head == open_bundle(tmp_path / "run").record.head.name == "logistic"


def test_one_head_is_compared_with_itself_at_several_stages(pictures, tmp_path):
    _, advice = train_auto(pictures, tmp_path / "run", ask(heads=[head for head in HEADS if head.name == "svm"]))
    assert advice.recommendation.head == "svm"
    assert sorted((each.head, each.stage) for each in advice.heads) == [
        ("svm", stage) for stage in ("first", "first+second", "second", "third")
    ]


def test_if_fine_tuning_diverges_frozen_features_are_kept(pictures, tmp_path, monkeypatch):
    part = trials.run_trial

    def run_trial(source, out, *rest, **kept):
        if out.name != "frozen":
            raise DataError("the loss is nan in phase 2, epoch 1")
        return part(source, out, *rest, **kept)

    monkeypatch.setattr(trials, "run_trial", run_trial)
    trained, advice = train_auto(pictures, tmp_path / "run", ask(policy=eager(1)))
    assert advice.recommendation.strategy == open_bundle(trained.bundle).record.strategy.name == "frozen"
    assert advice.recommendation.reasons[-1].endswith(" failed: the loss is nan in phase 2, epoch 1")


def test_it_works_in_one_process_only(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"not under torchrun; ask `tlkit advise` first"):
        train_auto(pictures, tmp_path / "run", ask())


def test_a_dataset_that_cannot_be_trained_on_is_refused_before_any_image_is_read(tmp_path):
    write_images(tmp_path / "photos", classes=("dark",))
    said = []
    with pytest.raises(DataError, match="only one class"):
        train_auto(tmp_path / "photos", tmp_path / "run", ask(), progress=lambda what, _total: said.append(what))
    assert said == []


def test_if_inconclusive_it_trains_cautiously(pictures, tmp_path):
    for number in (3, 4, 5, 6, 7, 8, 9, 10, 11):
        for label in ("dark", "light", "middle"):
            (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
            source = pictures / label / f"{number:02}.png"
            if number < 6:
                (tmp_path / "photos" / label / source.name).write_bytes(source.read_bytes())
    trained, advice = train_auto(tmp_path / "photos", tmp_path / "run", ask())
    assert advice.recommendation.inconclusive
    assert trained.cut == "third"


@pytest.mark.parametrize("is_better", [True, False])
def test_a_fine_tuned_trunk_is_kept_only_if_it_is_better(pictures, tmp_path, monkeypatch, is_better):
    monkeypatch.setattr(trials, "compared", lambda *_, **__: comparison(better=is_better))
    trained, advice = train_auto(pictures, tmp_path / "run", ask(policy=eager(1)))
    record = open_bundle(tmp_path / "run").record
    assert record.strategy.name == ("probe-then-tune" if is_better else "frozen")
    assert (record.phases[-1]["trainable"] > 0) is is_better
    assert trained.bundle == tmp_path / "run"
    assert [each["name"].split()[0] for each in record.strategy.report["trials"]] == ["frozen", "probe-then-tune"]
    if not is_better:
        assert "is not better" in " ".join(advice.recommendation.reasons)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_under_a_head_that_cannot_be_trained_by_gradient_the_trunk_stays_frozen(pictures, tmp_path):
    class Alone(Knn):
        def stand_in(self):
            return None

    _, advice = train_auto(pictures, tmp_path / "run", ask(heads=[Alone()], policy=eager(1)))
    assert (advice.recommendation.strategy, advice.recommendation.head) == ("frozen", "knn")


def test_a_head_that_can_only_be_trained_by_gradient_is_recommended(pictures, tmp_path):
    _, advice = train_auto(pictures, tmp_path / "run", ask(heads=[Line()]))
    assert (advice.recommendation.head, list(advice.heads)) == ("line", [])


@pytest.fixture
def with_label_errors(pictures, tmp_path):
    """The pictures with two of them in the wrong class: no frozen features are always right."""
    shutil.copytree(pictures, tmp_path / "photos")
    for name in ("03.png", "04.png"):
        (tmp_path / "photos" / "dark" / name).rename(tmp_path / "photos" / "light" / f"not-{name}")
    return tmp_path / "photos"


@pytest.mark.parametrize("better", [True, False])
def test_a_quick_trial_decides_whether_to_fine_tune(with_label_errors, tmp_path, monkeypatch, better):
    tried = comparison(better=better)
    monkeypatch.setattr(auto, "quick_trial", lambda *_: tried)
    monkeypatch.setattr(trials, "compared", lambda *_, **__: comparison(better=True))
    policy = replace(eager(1), fine_tuning=FineTuningPolicy(epochs=1))
    trained, advice = train_auto(with_label_errors, tmp_path / "run", ask(policy=policy))
    recommendation = advice.recommendation
    assert trained.strategy == recommendation.strategy == ("probe-then-tune" if better else "frozen")
    assert any(f"a trial with few trainable stages: {tried}" in reason for reason in recommendation.reasons)
    advised = open_bundle(trained.bundle).record.strategy.report["recommendation"]["accuracy"]
    assert tuple(advised) == recommendation.accuracy
    if better:  # the validation images say more than the trial
        assert recommendation.accuracy == trained.metrics.balanced_interval


@pytest.mark.parametrize(
    ("on_val", "kept"),
    [
        ({"accuracy": (0.7, 0.7), "disturbed": (0.7, 0.65)}, True),
        ({"accuracy": (0.7, 0.65), "disturbed": (0.7, 0.9)}, True),  # an error of 0.1
        ({"accuracy": (0.7, 0.55), "disturbed": (0.7, 0.9)}, False),
    ],
)
def test_the_images_of_the_quick_trial_count_but_none_worse_on_val_beyond_its_error_is_kept(
    with_label_errors, tmp_path, monkeypatch, on_val, kept
):
    monkeypatch.setattr(auto, "quick_trial", lambda *_: comparison(better=True, images=40))
    monkeypatch.setattr(trials, "compared", lambda *_, **__: comparison(better=False, **on_val))
    policy = replace(eager(1), fine_tuning=FineTuningPolicy(epochs=1))
    trained, advice = train_auto(with_label_errors, tmp_path / "run", ask(policy=policy))
    assert trained.strategy == ("probe-then-tune" if kept else "frozen")
    assert ("on 56 held-out images" in advice.recommendation.reasons[-1]) is kept


@pytest.mark.parametrize("is_better", [True, False])
def test_within_a_budget_that_is_given_the_best_is_averaged_with_other_seeds(
    pictures, tmp_path, monkeypatch, is_better
):
    def judge(_request, _samples, best, _trial):
        return comparison(better=best.bundle.name == "frozen" or is_better)

    monkeypatch.setattr(trials, "compared", judge)
    trained, advice = train_auto(pictures, tmp_path / "run", ask(policy=eager(1)), budget=1e6)
    assert trained.strategy != "frozen"
    assert open_bundle(tmp_path / "run").record.training.get("averaged") == (3 if is_better else None)
    said = "better than one" if is_better else "not better than one"
    assert f"the average of 3 trainings is {said}" in advice.recommendation.reasons[-1]
