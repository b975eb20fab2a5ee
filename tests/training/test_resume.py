"""A training that was stopped, however it was, is taken up and reaches the weights of one that was not."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from tests.kit.course import PHASES, Stopped, Stops, course, same
from tlkit.errors import ResourceError, UsageError
from tlkit.plugin.contract import Phase
from tlkit.training.checkpoint import Checkpoint, Checkpoints
from tlkit.training.config import RunOptions
from tlkit.training.device import Device
from tlkit.training.run import train
from tlkit.training.run_directory import check_unfinished, differences, folder_of, is_unfinished, run_directory

EPOCHS = sum(phase.epochs for phase in PHASES)


@pytest.fixture(scope="module")
def whole(pictures):
    """The weights and the history of a training that nothing stopped, and that kept nothing."""
    return course(pictures, cache=False)


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_keeping_checkpoints_changes_nothing(pictures, whole, work):
    weights, fitted = course(pictures, work, cache=False)
    assert same(weights, whole[0])
    assert fitted.history == whole[1].history
    assert len(fitted.history) == EPOCHS
    assert len(list(work.glob("checkpoint-*"))) == 2


@pytest.mark.parametrize("after", range(EPOCHS))
def test_stopped_after_any_epoch_it_reaches_the_same_weights(pictures, whole, work, after):
    with pytest.raises(Stopped):
        course(pictures, work, cache=False, watch=Stops(after))
    weights, fitted = course(pictures, work, cache=False)
    assert same(weights, whole[0])
    assert fitted.history == whole[1].history


@pytest.mark.parametrize(
    ("when", "number"), [("step", 2), ("step", 13), ("step", 25), ("checkpoint", 5), ("checkpoint", 7)]
)
def test_killed_at_any_time_it_reaches_the_same_weights(pictures, work, checkout, when, number):
    command = [sys.executable, checkout / "tests/kit/course.py", pictures, work, when, str(number)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])}
    finished = subprocess.run(command, env=env, capture_output=True, check=False)
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    weights, fitted = course(pictures, work)
    expected, unbroken = course(pictures, work.parent)
    assert same(weights, expected)
    assert fitted.history == unbroken.history


@pytest.mark.parametrize(
    "way",
    [
        {"mixup": 0.4, "cutmix": 1.0, "ema": 0.9},
        {"balance": "sampling", "randaugment": 9, "label_smoothing": 0.1, "gradient_clipping": 0.5},
        {"balance": "weights", "optimizer": "sgd", "warmup": 0.3, "batchnorm": "update", "lr_decay": 0.5},
    ],
    ids="-".join,
)
def test_whatever_it_learns_by_it_is_taken_up_as_it_was(pictures, work, way):
    """With all that a step may be made of, and the scaler of half precision, which is on elsewhere than here."""

    def learnt(folder, watch=None):
        machine = Device()
        machine.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
        phases = (Phase(1, 0.05), Phase(3, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, augment=True, **way))
        weights, fitted = course(pictures, folder, phases=phases, cache=False, watch=watch, machine=machine)
        return weights, fitted.history, machine.scaler.state_dict()

    weights, history, scaler = learnt(None)
    assert scaler["scale"] > 256.0
    with pytest.raises(Stopped):
        learnt(work, Stops(2))
    again = learnt(work)
    assert same(again[0], weights)
    assert again[1:] == (history, scaler)


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(pictures, whole, work, damage):
    with pytest.raises(Stopped):
        course(pictures, work, cache=False, watch=Stops(5))
    newest = max(work.glob("checkpoint-*"))
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content[:-10] if damage == "truncated" else content)
    said = []
    weights, _ = course(pictures, work, cache=False, warn=said.append)
    assert len(said) == 1
    assert newest.name in said[0]
    assert same(weights, whole[0])


def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(work, monkeypatch):
    checkpoints = Checkpoints(work, warn=print)
    first = Checkpoint(1, 1, 0, 1.0, [], {"a": torch.ones(3)})
    checkpoints.save(first)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"no space left on device; free some space and go on with --resume"):
        checkpoints.save(replace(first, epoch=2))
    assert [file.name for file in work.iterdir()] == ["checkpoint-0001-000001.safetensors"]
    assert checkpoints.newest().epoch == 1


def test_a_checkpoint_comes_back_to_the_bit(work):
    state = Checkpoint(2, 3, 1, 0.5, [{"phase": 1, "val_loss": 0.1 + 0.2}], {"a": torch.rand(3, 4, 2, 2)})
    state.optimizer = {"0.step": torch.tensor(5.0), "0.exp_avg": torch.rand(2)}
    state.best = {"a": state.now["a"], "n": torch.tensor(7)}
    checkpoints = Checkpoints(work, warn=print)
    checkpoints.save(state)
    found = checkpoints.newest()
    assert (found.phase, found.epoch, found.waited, found.loss, found.history) == (2, 3, 1, 0.5, state.history)
    for group in Checkpoint.GROUPS:
        assert same(getattr(found, group), getattr(state, group))


class TestWorkplace:
    def test_it_goes_when_all_is_done_and_stays_with_a_checkpoint(self, tmp_path):
        out = tmp_path / "run"
        with run_directory(out, {"a": 1}, resume=False, is_main_process=True) as folder:
            assert folder == folder_of(out)
            (folder / "checkpoint-1").touch()
        assert not folder.exists()
        with suppress(Stopped), run_directory(out, {"a": 1}, resume=False, is_main_process=True):
            (folder / "checkpoint-1").touch()
            raise Stopped
        with pytest.raises(UsageError, match=r"run: a training of it was left off; go on with --resume, or give it up"):
            check_unfinished(out, resume=False)
        check_unfinished(out, resume=True)
        with run_directory(out, {"a": 1}, resume=True, is_main_process=True):
            assert (folder / "checkpoint-1").exists()

    def test_nothing_stays_of_a_training_that_came_to_nothing(self, tmp_path):
        with suppress(Stopped), run_directory(tmp_path / "run", {}, resume=False, is_main_process=True):
            raise Stopped
        assert list(tmp_path.iterdir()) == []

    def test_what_is_another_now_is_named(self):
        before = {"seed": 0, "strategy": {"name": "full", "epochs": 10}, "images": {"a.jpg": "train ant 12"}}
        now = {"seed": 1, "strategy": {"name": "full", "epochs": 20}, "images": {"b.jpg": "train ant 12"}}
        assert list(differences(before, now)) == [
            "seed was 0, is 1",
            "strategy.epochs was 10, is 20",
            "images.a.jpg was train ant 12, is not there",
            "images.b.jpg was not there, is train ant 12",
        ]
        assert list(differences(before, before)) == []

    def test_of_phases_it_is_the_one_and_the_option(self):
        before = {"phase": [{"epochs": 1, "batch": 8}, {"epochs": 2, "batch": 8}]}
        now = {"phase": [{"epochs": 1, "batch": 8}, {"epochs": 3, "batch": 8}]}
        assert list(differences(before, now)) == ["phase 2.epochs was 2, is 3"]
        assert list(differences(before, {"phase": before["phase"][:1]})) == ["phase was 2 of them, is 1 of them"]


def test_a_whole_run_is_taken_up_and_gives_the_same_bundle(pictures, tiny_recipe, tmp_path, monkeypatch):
    from tests.training.test_tune import tuned
    from tlkit.training.history import Watch

    phases = (Phase(2, 0.05), Phase(2, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, augment=True))
    recipe = replace(tiny_recipe, **tuned(*phases))
    how = RunOptions(checkpoint_every=0)
    expected = train(pictures, tmp_path / "expected", recipe, how=how).digest

    lines = []

    def stop(_watch, line):
        lines.append(line)
        if len(lines) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(pictures, tmp_path / "run", recipe, how=how)
    assert not (tmp_path / "run").exists()
    assert is_unfinished(tmp_path / "run")
    with pytest.raises(UsageError, match="was left off; go on with --resume"):
        train(pictures, tmp_path / "run", recipe)
    with pytest.raises(UsageError, match=r"it was begun with something else: seed was 0, is 1; give what it was"):
        train(pictures, tmp_path / "run", replace(recipe, seed=1), how=replace(how, resume=True))
    assert train(pictures, tmp_path / "run", recipe, how=replace(how, resume=True)).digest == expected
    assert not folder_of(tmp_path / "run").exists()
    assert json.loads((tmp_path / "run/history.jsonl").read_text().splitlines()[0])["phase"] == 1
