"""Several processes that share every batch learn what one learns, and only the first of them writes."""

from __future__ import annotations

import json
import re
import socket

import pytest
import torch

from tests.kit.components import environment
from tests.kit.course import course, same
from tlkit.plugin.contract import Augmentation, Loss, Optimizer, Phase
from tlkit.version import __version__

PHASES = (
    Phase(2, 0.05, batch_size=9, optimizer=Optimizer("sgd")),
    # Not by AdamW, which makes whole steps of the rounding errors that are a bias's only gradient before a batch norm.
    Phase(
        3,
        0.05,
        trunk_lr=0.02,
        trainable=2,
        batch_size=9,
        optimizer=Optimizer("sgd", gradient_clipping=1.0),
        augmentation=Augmentation(crop=True),
        loss=Loss(label_smoothing=0.1),
        batchnorm="update",
    ),
)

SMALL = ("--backbone", "tiny", "--golden", "1", "--device", "cpu")
SET = ("trainable=1", "epochs=2", "augment=false", "optimizer=sgd")
TUNED = [word for name in SET for word in ("--set", f"strategy.{name}")]

SCRIPT = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from tests.kit.course import course
from tests.training.test_processes import PHASES
from tlkit.training.device import Device, DeviceOptions

device = Device(DeviceOptions("cpu", "fp32"))
work = Path(sys.argv[2])
with device.process_group():
    weights, fitted = course(Path(sys.argv[1]), work, phases=PHASES, device=device)
save_file({name: value.contiguous() for name, value in weights.items()}, work / f"{device.rank}.weights")
(work / f"{device.rank}.json").write_text(json.dumps(fitted.history))
"""


def places(world_size):
    """The environments that torchrun gives to so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank)} for rank in range(world_size)]


@pytest.fixture(scope="module")
def together(pictures, tmp_path_factory, forks):
    """Two processes in the places of torchrun: the history of each, their weights, and the folder they worked in."""
    from safetensors.torch import load_file

    work = tmp_path_factory.mktemp("together")
    for done in forks.run_together(["-c", SCRIPT, pictures, work], envs=places(2)):
        assert done.code == 0, done.err
    histories = [json.loads((work / f"{rank}.json").read_text()) for rank in range(2)]
    return histories, [load_file(work / f"{rank}.weights") for rank in range(2)], work


def test_two_processes_give_the_loss_curve_of_one(pictures, together, tmp_path):
    histories, weights, _ = together
    alone, found = course(pictures, tmp_path, phases=PHASES)
    assert histories[0] == histories[1]
    assert same(*weights)
    for ours, theirs in zip(found.history, histories[0], strict=True):
        for name in ours:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-4), name
    statistics = {name for name in alone if "running" in name}
    assert statistics
    for name in (*statistics, "head.weight"):
        assert torch.allclose(alone[name], weights[0][name], atol=2e-3), name


def test_only_the_first_keeps_checkpoints_and_views(together):
    *_, work = together
    checkpoints = sorted(file.name for file in work.glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-0002-000002.safetensors", "checkpoint-0002-000003.safetensors"]
    views = [file.name for file in work.glob("*.npy")]
    assert len(views) == 3  # two to train on, one to validate on
    assert not list(work.glob(".*"))


@pytest.fixture(scope="module")
def run(pictures, forks, tmp_path_factory):
    """`tlkit train` in so many processes at once; the exit code and what was said, of each."""
    env = environment(tmp_path_factory.mktemp("tiny") / "site")

    def run(out, strategy, *more, world_size=2):
        command = ["tlkit", "train", pictures, "-o", out, *SMALL, "--strategy", strategy, *more]
        return [
            (done.code, done.out, re.sub(r"^\[Gloo\] .*\n", "", done.err, flags=re.MULTILINE))  # PyTorch 2.9's own
            for done in forks.run_together(command, envs=[{**env, **place} for place in places(world_size)])
        ]

    return run


class TestTrain:
    """Whole runs, in the places that torchrun gives to its processes."""

    def test_the_first_writes_and_speaks_and_its_curve_is_that_of_one(self, run, tmp_path):
        runs = {world: run(tmp_path / str(world), "partial", *TUNED, world_size=world) for world in (1, 2)}
        for found in runs.values():
            assert [code for code, _, _ in found] == [0] * len(found), found
            assert "validation accuracy" in found[0][1]
        assert runs[2][1][1:] == ("", "")
        curves = {
            world: [json.loads(line) for line in (tmp_path / str(world) / "history.jsonl").read_text().splitlines()]
            for world in runs
        }
        for ours, theirs in zip(curves[1][:2], curves[2][:2], strict=True):
            for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "lr"):
                assert theirs[name] == pytest.approx(ours[name], rel=1e-2, abs=1e-3), name
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]

    def test_where_nothing_moves_the_first_does_it_alone(self, run, tmp_path):
        found = run(tmp_path / "run", "frozen")
        assert [code for code, _, _ in found] == [0, 0], found
        assert "validation accuracy" in found[0][1]
        assert found[1][1:] == ("", "")

    def test_each_says_what_it_ended_for_with_its_number(self, run, tmp_path):
        found = run(tmp_path / "run", "partial", "--set", "strategy.trainable=20")
        assert [code for code, _, _ in found] == [2, 2]
        problem = f"strategy 'partial' (tlkit {__version__}) can't be run: phase 1 trains 20 stages of 3\n"
        assert [said for _, _, said in found] == [f"tlkit: {problem}", f"tlkit (process 1): {problem}"]
        (tmp_path / "there").mkdir()
        (tmp_path / "there/file").touch()
        found = run(tmp_path / "there", "partial")
        assert [code for code, _, _ in found] == [2, 2]
        assert all("it exists already" in said for _, _, said in found)
