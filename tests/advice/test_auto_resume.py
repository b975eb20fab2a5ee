"""Auto that was killed, whenever it was, is taken up and ends with the bundle of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.advice import killed
from tests.advice.asking import ask
from tlkit.advice import auto, statistics
from tlkit.errors import UsageError
from tlkit.model.bundle import open_bundle
from tlkit.training.config import RunOptions
from tlkit.training.history import Watch
from tlkit.training.run import train
from tlkit.training.run_directory import DONE, folder_of, is_unfinished


@pytest.fixture(scope="module")
def start(pictures, checkout, tmp_path_factory):
    """Runs auto in a process of its own: exit code, and what it printed (digest, strategy, trials)."""
    cache = tmp_path_factory.mktemp("cache")

    def run(out, budget, kept, when="never", number=0):
        command = [sys.executable, checkout / "tests/advice/killed.py", pictures, out]
        path = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [*command, str(budget), kept, when, str(number)],
            env={**os.environ, "PYTHONPATH": path, "TLKIT_CACHE": str(cache)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode, done.stdout.split()[:3]

    return run


@pytest.fixture(scope="module")
def unbroken(start, tmp_path_factory):
    """What comes of it where nothing is killed, by budget and which trunk does better."""
    known = {}

    def found(*case):
        if case not in known:
            known[case] = start(tmp_path_factory.mktemp("unbroken") / "run", *case)[1]
        return known[case]

    return found


@pytest.mark.parametrize(
    ("case", "moments"),
    [
        ((0, "moved"), [("rename", 4), ("step", 20)]),
        ((0, "frozen"), [("step", 90)]),
        ((0, "moved"), [("rename", 60), ("rename", 10), ("rename", 40)]),
        ((3600, "frozen"), [("step", 5), ("rename", 50), ("step", 30)]),
    ],
)
def test_killed_at_any_time_it_ends_with_the_same_bundle(start, unbroken, tmp_path, case, moments):
    out = tmp_path / "run"
    for moment in moments:
        assert start(out, *case, *moment)[0] == -signal.SIGKILL
        assert not out.exists()
        assert is_unfinished(out)
    code, told = start(out, *case)
    assert (code, told) == (0, unbroken(*case))
    assert [path.name for path in tmp_path.iterdir() if "training" in path.name] == []


@pytest.fixture
def left_off(pictures, tmp_path, monkeypatch):
    """The folder of a bundle whose training by auto was interrupted while the trunk moved."""
    for owner, name, value in (
        (statistics, "LARGE", 20),
        (statistics, "LARGE_PER_CLASS", 5),
        (killed.recommend, "ROOM", -1.0),
        (killed.recommend, "EPOCHS", 2),
    ):
        monkeypatch.setattr(owner, name, value)

    def interrupted(_watch, _line):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            auto.train_auto(pictures, tmp_path / "run", ask(), RunOptions(checkpoint_every=0))
    return tmp_path / "run"


def test_what_was_left_off_is_begun_anew_by_nobody_who_does_not_say_so(left_off, pictures, tiny_recipe):
    from tests.training.test_tune import tuned
    from tlkit.plugin.contract import Phase

    moving = replace(tiny_recipe, **tuned(Phase(1, 0.05, trunk_lr=0.02, trainable=1)))
    with pytest.raises(UsageError, match="was left off; go on with --resume"):
        auto.train_auto(pictures, left_off, ask())
    with pytest.raises(UsageError, match="was left off; go on with --resume"):
        train(pictures, left_off, moving)
    with pytest.raises(UsageError, match=r"begun with something else: .*strategy was auto"):
        train(pictures, left_off, moving, how=RunOptions(resume=True))
    with pytest.raises(UsageError, match="begun with something else: seed was 0, is 1; give what it was"):
        auto.train_auto(pictures, left_off, ask(seed=1), RunOptions(resume=True))
    with pytest.raises(UsageError, match="begun with something else: budget was not there, is 60"):
        auto.train_auto(pictures, left_off, ask(), RunOptions(resume=True), budget=60.0)
    assert is_unfinished(left_off)


def test_what_is_done_is_not_done_again(left_off, pictures, monkeypatch):
    assert [path.name for path in folder_of(left_off).glob(f"*{DONE}")] == [f"frozen{DONE}"]
    trained_to = []
    before = auto.run.__globals__["train"]

    def counted(source, out, *rest):
        trained_to.append(out.name)
        return before(source, out, *rest)

    monkeypatch.setitem(auto.run.__globals__, "train", counted)
    monkeypatch.setattr(auto, "better", lambda _moved, _still, _likeness: True)
    trained, _ = auto.train_auto(pictures, left_off, ask(), RunOptions(resume=True))
    assert trained_to == ["moved"]
    assert trained.bundle == left_off
    assert not folder_of(left_off).exists()


def test_with_nothing_to_go_on_from_it_begins(pictures, tmp_path):
    trained, advice = auto.train_auto(pictures, tmp_path / "run", ask(), RunOptions(resume=True))
    assert trained.bundle == tmp_path / "run"
    assert open_bundle(trained.bundle).record.strategy.name == advice.recommendation.strategy
