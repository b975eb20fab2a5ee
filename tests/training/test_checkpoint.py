"""An interrupted training resumes and reaches, bit-identically, the weights of one that was not interrupted."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace

import pytest
import torch

from tests.kit.course import PHASES, Stopped, Stops, as_on_a_gpu, course, same
from tlkit.errors import ResourceError
from tlkit.plugin.contract import Augmentation, Loss, Optimizer, Phase
from tlkit.training.checkpoint import Checkpoint, Checkpoints
from tlkit.training.device import Device

EPOCHS = sum(phase.epochs for phase in PHASES)


@pytest.fixture(scope="module")
def whole(pictures):
    """The weights and the history of an uninterrupted training without checkpoints."""
    return course(pictures, cache=False)


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_checkpoints_change_nothing(pictures, whole, work):
    weights, fitted = course(pictures, work, cache=False)
    assert same(weights, whole[0])
    assert fitted.history == whole[1].history
    assert len(fitted.history) == EPOCHS
    assert len(list(work.glob("checkpoint-*"))) == 2


@pytest.mark.parametrize("after", range(EPOCHS))
def test_interrupted_after_any_epoch_it_reaches_the_same_weights(pictures, whole, work, after):
    with pytest.raises(Stopped):
        course(pictures, work, cache=False, monitor=Stops(after))
    weights, fitted = course(pictures, work, cache=False)
    assert same(weights, whole[0])
    assert fitted.history == whole[1].history


def test_batches_that_did_not_fit_are_split_from_the_first_step_on(pictures, work):
    devices = Device(), Device()
    devices[0].micro_batches = 2
    with pytest.raises(Stopped):
        course(pictures, work, monitor=Stops(5), device=devices[0])
    course(pictures, work, device=devices[1])
    assert devices[1].micro_batches == 2


def test_so_does_one_with_batches_of_one_shape(pictures, work):
    expected, unbroken = course(pictures, work.parent, device=as_on_a_gpu())
    with pytest.raises(Stopped):
        course(pictures, work, monitor=Stops(5), device=as_on_a_gpu())
    weights, fitted = course(pictures, work, device=as_on_a_gpu())
    assert same(weights, expected)
    assert fitted.history == unbroken.history


@pytest.mark.parametrize(
    ("when", "number"), [("step", 2), ("step", 13), ("step", 25), ("checkpoint", 5), ("checkpoint", 7)]
)
def test_killed_at_any_time_it_reaches_the_same_weights(pictures, work, checkout, forks, when, number):
    finished = forks.run([checkout / "tests/kit/course.py", pictures, work, when, number])
    assert finished.code == -signal.SIGKILL, finished.err
    weights, fitted = course(pictures, work)
    expected, unbroken = course(pictures, work.parent)
    assert same(weights, expected)
    assert fitted.history == unbroken.history


@pytest.mark.parametrize(
    "way",
    [
        {"augmentation": Augmentation(crop=True, mixup=0.4, cutmix=1.0), "ema": 0.9},
        {
            "augmentation": Augmentation(crop=True, randaugment=9),
            "loss": Loss(0.1, "sampling"),
            "optimizer": Optimizer(gradient_clipping=0.5),
        },
        {
            "augmentation": Augmentation(crop=True),
            "loss": Loss(balance="weights"),
            "optimizer": Optimizer("sgd", warmup=0.3),
            "batchnorm": "update",
            "lr_decay": 0.5,
        },
    ],
    ids="-".join,
)
def test_whatever_a_step_consists_of_it_resumes_as_it_was(pictures, work, way):
    """With the gradient scaler of half precision as well, which is on elsewhere than here."""

    def trained(folder, monitor=None):
        device = Device()
        device.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
        phases = (Phase(1, 0.05), Phase(3, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, **way))
        weights, fitted = course(pictures, folder, phases=phases, cache=False, monitor=monitor, device=device)
        return weights, fitted.history, device.scaler.state_dict()

    weights, history, scaler = trained(None)
    assert scaler["scale"] > 256.0
    with pytest.raises(Stopped):
        trained(work, Stops(2))
    again = trained(work)
    assert same(again[0], weights)
    assert again[1:] == (history, scaler)


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(pictures, whole, work, damage):
    with pytest.raises(Stopped):
        course(pictures, work, cache=False, monitor=Stops(5))
    newest = max(work.glob("checkpoint-*"))
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content[:-10] if damage == "truncated" else content)
    said = []
    weights, _ = course(pictures, work, cache=False, warn=said.append)
    assert len(said) == 1
    assert f"{newest.name}: skipped a damaged checkpoint" in said[0]
    assert same(weights, whole[0])


def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(work, monkeypatch):
    checkpoints = Checkpoints(work, warn=print)
    first = Checkpoint(1, 1, 0, 1.0, [], {"a": torch.ones(3)})
    checkpoints.save(first)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"no space left on device; free some space and continue with --resume"):
        checkpoints.save(replace(first, epoch=2))
    assert [file.name for file in work.iterdir()] == ["checkpoint-0001-000001.safetensors"]
    assert checkpoints.newest().epoch == 1


def test_a_checkpoint_is_read_as_it_was_written(work):
    written = Checkpoint(2, 3, 1, 0.5, [{"phase": 1, "val_loss": 0.1 + 0.2}], {"a": torch.rand(3, 4, 2, 2)})
    written.optimizer = {"0.step": torch.tensor(5.0), "0.exp_avg": torch.rand(2)}
    written.best = {"a": written.weights["a"], "n": torch.tensor(7)}
    written.scaler = {"scale": 256.0}
    checkpoints = Checkpoints(work, warn=print)
    checkpoints.save(written)
    read = checkpoints.newest()
    for name in Checkpoint.FACTS:
        assert getattr(read, name) == getattr(written, name), name
    for group in Checkpoint.GROUPS:
        assert same(getattr(read, group), getattr(written, group)), group


@pytest.mark.parametrize("fact", ["epoch", "best_loss"])
def test_a_fact_that_was_changed_is_damage(tmp_path, fact):
    said = []
    kept = Checkpoints(tmp_path, warn=said.append)
    kept.save(Checkpoint(0, 1, 0, 1.5, [], {"a": torch.ones(2)}))
    assert kept.newest().best_loss == 1.5
    (file,) = kept.files()
    content = file.read_bytes()
    before, after = {"epoch": (b'epoch\\": 1', b'epoch\\": 2'), "best_loss": (b": 1.5", b": 0.5")}[fact]
    assert before in content
    file.write_bytes(content.replace(before, after))
    assert kept.newest() is None
    assert "its content does not match its hash" in said[0]
