"""Auto follows the advice deterministically, and keeps a fine-tuned trunk only if it is better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tlkit_standard.heads import HEADS

from tests.advice.asking import ask, eager
from tests.advice.test_domain_shift import Plain
from tests.kit.tiny import Line, Tiny, write_images
from tlkit.advice import auto, trials
from tlkit.advice.auto import train_auto
from tlkit.advice.domain_shift import ShiftPolicy
from tlkit.advice.recommendation import FineTuningPolicy
from tlkit.advice.run import AdvicePolicy, advise
from tlkit.advice.trials import run_trials
from tlkit.errors import DataError, UsageError
from tlkit.model.bundle import open_bundle


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


def test_no_image_is_decoded_twice(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
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


def test_one_head_is_compared_with_none(pictures, tmp_path):
    _, advice = train_auto(pictures, tmp_path / "run", ask(heads=[head for head in HEADS if head.name == "svm"]))
    assert (advice.recommendation.head, list(advice.heads)) == ("svm", [])


def test_if_fine_tuning_diverges_frozen_features_are_kept(pictures, tmp_path, monkeypatch):
    part = auto.run_trial

    def run_trial(source, out, *rest, **kept):
        if out.name == auto.FINE_TUNED_PART:
            raise DataError("the loss is nan in phase 2, epoch 1")
        return part(source, out, *rest, **kept)

    monkeypatch.setattr(auto, "run_trial", run_trial)
    trained, advice = train_auto(pictures, tmp_path / "run", ask(policy=eager(1)))
    assert advice.recommendation.strategy == open_bundle(trained.bundle).record.strategy.name == "frozen"
    assert advice.recommendation.reasons[-1] == "fine-tuning failed: the loss is nan in phase 2, epoch 1"


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
    monkeypatch.setattr(auto, "is_better", lambda _fine_tuned, _frozen, _domain: is_better)
    trained, advice = train_auto(pictures, tmp_path / "run", ask(policy=eager(1)))
    record = open_bundle(tmp_path / "run").record
    assert record.strategy.name == ("probe-then-tune" if is_better else "frozen")
    assert (record.phases[-1]["trainable"] > 0) is is_better
    assert trained.bundle == tmp_path / "run"
    assert len(record.strategy.report["trials"]) == (1 if is_better else 2)
    if not is_better:
        assert "is not better" in " ".join(advice.recommendation.reasons)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_under_a_head_that_cannot_be_trained_by_gradient_the_trunk_stays_frozen(pictures, tmp_path):
    knn = [head for head in HEADS if head.name == "knn"]
    _, advice = train_auto(pictures, tmp_path / "run", ask(heads=knn, policy=eager(1)))
    assert (advice.recommendation.strategy, advice.recommendation.head) == ("frozen", "knn")


def test_a_head_that_can_only_be_trained_by_gradient_is_recommended(pictures, tmp_path):
    _, advice = train_auto(pictures, tmp_path / "run", ask(heads=[Line()]))
    assert (advice.recommendation.head, list(advice.heads)) == ("line", [])


SAME, CONFIDENT, LESS_CONFIDENT = [0] * 8 + [1] * 8, 0.5, 1.5


@pytest.mark.parametrize(
    ("correct", "log_loss", "domain", "kept"),
    [
        ([1] * 4 + SAME[4:], LESS_CONFIDENT, "similar", True),  # four of sixteen ahead, with a standard error of two
        ([1, *SAME[1:]], LESS_CONFIDENT, "different", False),  # one ahead, with a standard error of one
        ([1, *SAME[1:]], CONFIDENT, "different", True),
        (SAME, CONFIDENT, "unclear", True),
        (SAME, CONFIDENT, "unknown", True),
        (SAME, CONFIDENT, "similar", False),
        (SAME, LESS_CONFIDENT, "different", False),
        (SAME[:12] + [0] * 4, CONFIDENT, "different", False),  # four behind
    ],
)
def test_within_the_error_of_the_accuracy_the_log_loss_decides(pictures, tmp_path, correct, log_loss, domain, kept):
    trained, _ = train_auto(pictures, tmp_path / "run", ask())

    def of(correct, log_loss):
        return replace(trained, right=np.array(correct, bool), metrics=replace(trained.metrics, log_loss=log_loss))

    assert trials.is_better(of(correct, log_loss), of(SAME, 1.0), domain) is kept


ANY = float("inf")
SIMILAR, DIFFERENT = ShiftPolicy(similar_below=ANY), ShiftPolicy(similar_below=-1.0, different_above=-1.0)
UNCLEAR = ShiftPolicy(similar_below=-1.0, different_above=ANY)


@pytest.mark.parametrize(
    ("domain", "backbone", "shift", "min_error", "fine_tunes"),
    [
        ("similar", Tiny, SIMILAR, 1.0, False),
        ("similar", Tiny, SIMILAR, -1.0, True),
        ("unclear", Tiny, UNCLEAR, 1.0, True),
        ("different", Tiny, DIFFERENT, 1.0, True),
        ("unknown", Plain, ShiftPolicy(), 1.0, True),
    ],
)
def test_a_small_similar_dataset_is_fine_tuned_on_only_if_much_can_be_gained(
    pictures, domain, backbone, shift, min_error, fine_tunes
):
    fine_tuning = FineTuningPolicy(min_error=-1.0, min_error_small_similar=min_error)
    request = ask(backbones=[backbone()], policy=AdvicePolicy(shift=shift, fine_tuning=fine_tuning))
    advice = advise(pictures, request)
    recommendation = advice.recommendation
    assert advice.analysis.shift.domain == domain
    assert (recommendation.strategy == "probe-then-tune") is fine_tunes
    assert recommendation.cut == recommendation.frozen().cut


def test_a_budget_is_spent_on_trials(pictures):
    advice = advise(pictures, ask(), budget=3600)
    assert [trial["name"].split(" ")[0] for trial in advice.trials] == ["frozen", "partial", "probe-then-tune"]
    assert any(reason.startswith("trials:") for reason in advice.recommendation.reasons)
    assert all(0 <= trial["accuracy"] <= 1 for trial in advice.trials)
    assert "trials, accuracy on the validation images:" in str(advice)


def test_a_budget_that_is_too_small_changes_nothing_but_a_reason(pictures):
    request = ask()
    before = advise(pictures, request)
    after = run_trials(before, request, budget=1e-6)
    assert after.recommendation.arguments() == before.recommendation.arguments()
    assert "budget is too small" in " ".join(after.recommendation.reasons)
