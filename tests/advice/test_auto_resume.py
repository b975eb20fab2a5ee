"""Auto that was killed at any time is resumed, and ends with the bundle of a run that was not."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.advice.asking import ask, comparison, eager
from tests.kit.components import empty_cache
from tlkit.advice import auto, trials
from tlkit.errors import UsageError
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import silent
from tlkit.training.config import RunOptions
from tlkit.training.history import Monitor
from tlkit.training.run import train
from tlkit.training.run_directory import DONE, folder_of, is_unfinished


@pytest.fixture(scope="module")
def start(pictures, checkout, forks, tmp_path_factory):
    """Run auto in a process of its own: exit code, and its output (digest, strategy, trials)."""
    env = {"TLKIT_CACHE": str(empty_cache(tmp_path_factory.mktemp("killed") / "cache"))}

    def run(out, budget, kept, when="never", number=0):
        done = forks.run([checkout / "tests/advice/killed.py", pictures, out, budget, kept, when, number], env=env)
        assert done.code in (0, -signal.SIGKILL), done.err
        return done.code, done.out.split()[:3]

    return run


@pytest.fixture
def unbroken(pictures, tmp_path, monkeypatch):
    """Output of a run that was not killed, in this process, whose hashes and random numbers are others."""

    def run(budget, kept):
        monkeypatch.setattr(trials, "compared", lambda *_, **__: comparison(better=kept == "fine-tuned"))
        trained, advice = auto.train_auto(
            pictures, tmp_path / "unbroken", ask(policy=eager(3)), RunOptions(), budget or None
        )
        return [trained.digest, advice.recommendation.strategy, str(len(advice.trials))]

    return run


@pytest.mark.parametrize(
    ("case", "moments"),
    [
        ((0, "fine-tuned"), [("rename", 4), ("step", 20)]),
        ((0, "frozen"), [("step", 90)]),
        ((0, "fine-tuned"), [("rename", 60), ("rename", 10), ("rename", 40)]),
        ((3600, "frozen"), [("step", 5), ("rename", 50), ("step", 30)]),
    ],
)
def test_killed_at_any_time_it_ends_with_the_same_bundle(start, unbroken, tmp_path, case, moments):
    out = tmp_path / "run"
    in_place = []  # after each kill
    for moment in moments:
        assert start(out, *case, *moment)[0] == -signal.SIGKILL
        assert is_unfinished(out)
        in_place.append(open_bundle(out).record.strategy.name if out.exists() else "")
    assert in_place == sorted(in_place, key=["", "frozen", "partial", "probe-then-tune"].index)
    code, told = start(out, *case)
    assert (code, told) == (0, unbroken(*case))
    assert [path.name for path in tmp_path.iterdir() if "training" in path.name] == []


@pytest.fixture
def request_():
    return ask(policy=eager(2))


@pytest.fixture
def interrupted_run(pictures, tmp_path, monkeypatch, request_):
    """Bundle whose training by auto was interrupted while the trunk was fine-tuned."""

    def interrupt(_watch, _line):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "end_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            auto.train_auto(pictures, tmp_path / "run", request_, RunOptions(checkpoint_seconds=0))
    return tmp_path / "run"


def test_an_interrupted_run_is_not_resumed_as_another(interrupted_run, pictures, tiny_config, request_):
    from tests.kit.course import fine_tuning
    from tlkit.plugin.contract import Phase

    fine_tuned = replace(tiny_config, **fine_tuning(Phase(1, 0.05, trunk_lr=0.02, trainable=1)))
    with pytest.raises(UsageError, match="was interrupted; resume it with its options and --resume"):
        auto.train_auto(pictures, interrupted_run, request_)
    with pytest.raises(UsageError, match="was interrupted; resume it with its options and --resume"):
        train(pictures, interrupted_run, fine_tuned)
    with pytest.raises(UsageError, match=r"the interrupted run differs: .*strategy was auto"):
        train(pictures, interrupted_run, fine_tuned, options=RunOptions(resume=True))
    with pytest.raises(UsageError, match="the interrupted run differs: seed was 0, is 1; use the options"):
        auto.train_auto(pictures, interrupted_run, replace(request_, seed=1), RunOptions(resume=True))
    assert is_unfinished(interrupted_run)


def test_a_finished_part_is_not_trained_again(interrupted_run, pictures, monkeypatch, request_):
    assert [path.name for path in folder_of(interrupted_run).glob(f"*{DONE}")] == [f"frozen{DONE}"]
    trained_to = []
    train_part = trials.train

    def counted(source, out, *rest):
        trained_to.append(out.name)
        return train_part(source, out, *rest)

    monkeypatch.setattr(trials, "train", counted)
    monkeypatch.setattr(trials, "compared", lambda *_, **__: comparison(better=True))
    trained, _ = auto.train_auto(pictures, interrupted_run, request_, RunOptions(resume=True))
    assert trained_to == ["candidate-1"]
    assert trained.bundle == interrupted_run
    assert not folder_of(interrupted_run).exists()


def test_resume_without_an_interrupted_run_begins(pictures, tmp_path):
    trained, advice = auto.train_auto(pictures, tmp_path / "run", ask(), RunOptions(resume=True))
    assert trained.bundle == tmp_path / "run"
    assert open_bundle(trained.bundle).record.strategy.name == advice.recommendation.strategy


def test_a_budget_keeps_the_best_so_far_and_a_resumed_run_goes_on(pictures, tmp_path, monkeypatch, request_):
    monkeypatch.setattr(trials, "compared", lambda *_, **__: comparison(better=True))
    run, said = tmp_path / "run", []
    trained, advice = auto.train_auto(
        pictures, run, request_, RunOptions(), 1e-6, lambda what, total: said.append(what) or silent(what, total)
    )
    assert (trained.strategy, advice.recommendation.strategy) == ("frozen", "frozen")
    assert open_bundle(run).digest == trained.digest
    assert [each for each in said if each.startswith("in place: ")] == [
        each for each in said if "frozen up to " in each
    ]
    assert said[-1].startswith("the budget of 0.0 s is too small for 2 trainings; the same command with --resume ")
    with pytest.raises(UsageError, match="was interrupted; resume it with its options and --resume"):
        auto.train_auto(pictures, run, request_)
    resumed, _ = auto.train_auto(pictures, run, request_, RunOptions(resume=True), 3600.0)
    assert resumed.strategy != "frozen"
    assert open_bundle(run).digest == resumed.digest != trained.digest
    assert not folder_of(run).exists()
    whole, _ = auto.train_auto(pictures, tmp_path / "whole", request_, budget=3600.0)
    assert whole.digest == resumed.digest


def test_what_is_worse_on_the_validation_images_takes_no_place(pictures, tmp_path, monkeypatch, request_):
    worse = comparison(better=True, accuracy=(0.9, 0.79), errors=(0.1, 0.1), log_loss=(1.0, 0.1))
    assert worse.better
    monkeypatch.setattr(trials, "compared", lambda *_, **__: worse)
    trained, advice = auto.train_auto(pictures, tmp_path / "run", request_)
    assert trained.strategy == "frozen"
    assert "is not better than frozen" in advice.recommendation.reasons[-1]
