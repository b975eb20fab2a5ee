"""Several processes that share every batch learn what one learns, and only the first of them writes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.learn.course import course, same
from tlkit.plugin.contract import Phase

PHASES = (
    Phase(2, 0.05, batch=9, optimiser="sgd"),
    # Not by AdamW, which makes whole steps of the rounding errors that are a bias's only gradient before a batch norm.
    Phase(
        3,
        0.05,
        trunk_lr=0.02,
        moving=2,
        batch=9,
        optimiser="sgd",
        augment=True,
        clip=1.0,
        smoothing=0.1,
        norms="follow",
    ),
)

SCRIPT = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from tests.learn.course import course
from tests.learn.test_processes import PHASES
from tlkit.learn.loop.machine import Choice, Machine, processes

machine = Machine(Choice("cpu", "fp32"))
work = Path(sys.argv[2])
with processes(machine):
    weights, fitted = course(Path(sys.argv[1]), work, phases=PHASES, machine=machine)
save_file({name: value.contiguous() for name, value in weights.items()}, work / f"{machine.rank}.weights")
(work / f"{machine.rank}.json").write_text(json.dumps(fitted.history))
"""


@pytest.fixture
def together(pictures, tmp_path, checkout):
    """Two processes, started as torchrun does; the history of each, and their weights."""
    from safetensors.torch import load_file

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", SCRIPT, str(pictures), str(tmp_path)]
    started = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "PYTHONPATH": path}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [process.communicate()[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    histories = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    return histories, [load_file(tmp_path / f"{rank}.weights") for rank in range(2)]


def test_two_processes_give_the_loss_curve_of_one(pictures, together, tmp_path):
    histories, weights = together
    (tmp_path / "alone").mkdir()
    alone, found = course(pictures, tmp_path / "alone", phases=PHASES)
    assert histories[0] == histories[1]
    assert same(*weights)
    for ours, theirs in zip(found.history, histories[0], strict=True):
        for name in ours:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-4), name
    statistics = {name for name in alone if "running" in name}
    assert statistics
    for name in (*statistics, "head.weight"):
        assert torch.allclose(alone[name], weights[0][name], atol=2e-3), name


def test_only_the_first_keeps_checkpoints_and_views(together, tmp_path):
    assert together
    checkpoints = sorted(file.name for file in tmp_path.glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-0002-000002.safetensors", "checkpoint-0002-000003.safetensors"]
    views = [file.name for file in tmp_path.glob("*.npy")]
    assert len(views) == 3  # two to train on, one to validate on
    assert not list(tmp_path.glob(".*"))
