"""Auto does what was advised, the same every time, and keeps a trunk that moved only if it does better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tlkit_standard.heads import HEADS

from tests.advice.asking import ask
from tests.kit.tiny import Line, write_images
from tlkit.advice import auto, statistics, trials
from tlkit.advice.auto import train_auto
from tlkit.advice.run import advise
from tlkit.advice.trials import try_out
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


def test_with_a_cut_of_the_users_it_stays_with_that(pictures, tmp_path):
    trained, advice = train_auto(pictures, tmp_path / "run", ask(cut="first"))
    assert trained.cut == "first"
    assert advice.recommendation.cut == "first"


@pytest.mark.usefixtures("counts_as_large")
def test_a_cut_of_the_users_is_judged_there_and_nothing_moves(pictures, tmp_path):
    _, advice = train_auto(pictures, tmp_path / "run", ask(cut="first"))
    assert {each.stage for each in advice.heads} == {"first"}
    assert (advice.recommendation.strategy, advice.recommendation.cut) == ("frozen", "first")
    assert advice.recommendation.reasons == ("cut at first, as you say; with a cut of yours nothing moves",)
    assert len(advice.sight.stages) == 3


def test_one_head_is_compared_with_none(pictures, tmp_path):
    _, advice = train_auto(pictures, tmp_path / "run", ask(heads=[head for head in HEADS if head.name == "svm"]))
    assert (advice.recommendation.head, list(advice.heads)) == ("svm", [])


@pytest.mark.usefixtures("counts_as_large")
def test_where_moving_diverges_frozen_features_stay(pictures, tmp_path, monkeypatch):
    part = auto.run

    def run(source, out, *rest):
        if out.name == auto.MOVED:
            raise DataError("the loss is nan in phase 2, epoch 1")
        return part(source, out, *rest)

    monkeypatch.setattr(auto, "run", run)
    trained, advice = train_auto(pictures, tmp_path / "run", ask())
    assert advice.recommendation.strategy == open_bundle(trained.bundle).record.strategy.name == "frozen"
    assert advice.recommendation.reasons[-1] == "moving the trunk came to nothing: the loss is nan in phase 2, epoch 1"


def test_it_works_in_one_process_only(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"not under torchrun; ask `tlkit advise` first"):
        train_auto(pictures, tmp_path / "run", ask())


def test_what_cannot_be_trained_on_is_refused_before_any_image_is_seen(tmp_path):
    write_images(tmp_path / "photos", classes=("dark",))
    said = []
    with pytest.raises(DataError, match="only one class"):
        train_auto(tmp_path / "photos", tmp_path / "run", ask(), progress=lambda what, _total: said.append(what))
    assert said == []


def test_where_nothing_can_be_told_it_still_trains_cautiously(pictures, tmp_path):
    for number in (3, 4, 5, 6, 7, 8, 9, 10, 11):
        for label in ("dark", "light", "middle"):
            (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
            source = pictures / label / f"{number:02}.png"
            if number < 6:
                (tmp_path / "photos" / label / source.name).write_bytes(source.read_bytes())
    trained, advice = train_auto(tmp_path / "photos", tmp_path / "run", ask())
    assert not advice.recommendation.sure
    assert trained.cut == "third"


@pytest.fixture
def counts_as_large(monkeypatch):
    """So few pictures that count as many, of which frozen features leave something to be gained."""
    monkeypatch.setattr(statistics, "LARGE", 20)
    monkeypatch.setattr(statistics, "LARGE_PER_CLASS", 5)
    monkeypatch.setattr("tlkit.advice.recommendation.ROOM", -1.0)
    monkeypatch.setattr("tlkit.advice.recommendation.EPOCHS", 1)


@pytest.mark.parametrize("is_better", [True, False])
@pytest.mark.usefixtures("counts_as_large")
def test_a_trunk_that_moved_is_kept_only_if_it_does_better(pictures, tmp_path, monkeypatch, is_better):
    monkeypatch.setattr(auto, "better", lambda _moved, _still, _likeness: is_better)
    trained, advice = train_auto(pictures, tmp_path / "run", ask())
    record = open_bundle(tmp_path / "run").record
    assert record.strategy.name == ("probe-then-tune" if is_better else "frozen")
    assert (record.phases[-1]["trainable"] > 0) is is_better
    assert trained.bundle == tmp_path / "run"
    assert len(record.strategy.report["trials"]) == (1 if is_better else 2)
    if not is_better:
        assert "does no better" in " ".join(advice.recommendation.reasons)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.usefixtures("counts_as_large")
def test_under_a_head_that_cannot_learn_by_gradient_nothing_moves(pictures, tmp_path):
    _, advice = train_auto(pictures, tmp_path / "run", ask(heads=[head for head in HEADS if head.name == "knn"]))
    assert (advice.recommendation.strategy, advice.recommendation.head) == ("frozen", "knn")


def test_a_head_that_only_learns_by_gradient_will_do(pictures, tmp_path):
    _, advice = train_auto(pictures, tmp_path / "run", ask(heads=[Line()]))
    assert (advice.recommendation.head, list(advice.heads)) == ("line", [])


SAME, SURER, LESS_SURE = [0] * 8 + [1] * 8, 0.5, 1.5


@pytest.mark.parametrize(
    ("right", "log_loss", "likeness", "kept"),
    [
        ([1] * 4 + SAME[4:], LESS_SURE, "alike", True),  # four of sixteen ahead, with a standard error of two
        ([1, *SAME[1:]], LESS_SURE, "unlike", False),  # one ahead, with a standard error of one
        ([1, *SAME[1:]], SURER, "unlike", True),
        (SAME, SURER, "unclear", True),
        (SAME, SURER, "unknown", True),
        (SAME, SURER, "alike", False),
        (SAME, LESS_SURE, "unlike", False),
        (SAME[:12] + [0] * 4, SURER, "unlike", False),  # four behind
    ],
)
def test_where_few_images_cannot_tell_what_is_right_the_log_loss_decides(
    pictures, tmp_path, right, log_loss, likeness, kept
):
    trained, _ = train_auto(pictures, tmp_path / "run", ask())

    def of(right, log_loss):
        return replace(trained, right=np.array(right, bool), metrics=replace(trained.metrics, log_loss=log_loss))

    assert trials.better(of(right, log_loss), of(SAME, 1.0), likeness) is kept


@pytest.mark.parametrize(
    ("likeness", "most", "moves"),
    [
        ("alike", 1.0, False),
        ("alike", -1.0, True),
        ("unclear", 1.0, True),
        ("unlike", 1.0, True),
        ("unknown", 1.0, True),
    ],
)
def test_few_images_like_those_it_knows_move_the_trunk_only_if_much_is_to_be_gained(
    pictures, monkeypatch, likeness, most, moves
):
    monkeypatch.setattr("tlkit.advice.recommendation.ROOM", -1.0)
    monkeypatch.setattr("tlkit.advice.recommendation.ROOM_OF_FEW", most)
    monkeypatch.setattr("tlkit.advice.domain_shift.judge", lambda *_measured: (likeness, "so it is"))
    recommendation = advise(pictures, ask()).recommendation
    assert (recommendation.strategy == "probe-then-tune") is moves
    assert recommendation.cut == recommendation.frozen().cut


def test_a_budget_is_spent_on_trials(pictures):
    question = ask()
    advice = try_out(advise(pictures, question), question, budget=3600)
    assert [trial["what"].split(" ")[0] for trial in advice.trials] == ["frozen", "partial", "probe-then-tune"]
    assert any(reason.startswith("trials:") for reason in advice.recommendation.reasons)
    assert all(0 <= trial["accuracy"] <= 1 for trial in advice.trials)


def test_a_budget_too_small_changes_nothing_but_says_so(pictures):
    question = ask()
    before = advise(pictures, question)
    after = try_out(before, question, budget=1e-6)
    assert after.recommendation.arguments() == before.recommendation.arguments()
    assert "budget is too small" in " ".join(after.recommendation.reasons)
