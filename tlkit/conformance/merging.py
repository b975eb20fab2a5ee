"""The check of what a strategy prepares, apart from the others, which need no framework."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tlkit.conformance.subject import CheckFailed, Skipped
from tlkit.errors import GateError, UsageError
from tlkit.model.trunk import MeanPool, Trunk
from tlkit.plugin.contract import Phase, Preprocessing, Strategy
from tlkit.training.freezing import Network, Preparation

STAGES = ("first", "second", "third")
STEP = 0.01  # by which trained weights change


def small_trunk() -> Trunk:
    """Return three stages of convolutions, batch norms, a linear layer and a layer norm, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
        third = nn.Sequential(nn.Flatten(), nn.Linear(16 * 4 * 4, 16), nn.LayerNorm(16))
    preprocessing = Preprocessing(8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Trunk(preprocessing, dict(zip(STAGES, (first, second, third), strict=True)), MeanPool()).eval()


def check_merge(strategy: Strategy, phases: Sequence[Phase]) -> None:
    """Prepare a small network, change everything that the phases train, and merge it."""
    network = Network(nn.Identity(), small_trunk())
    try:
        preparation = Preparation(network, phases, strategy.prepare, seed=0)
    except UsageError as problem:
        raise Skipped(f"it does not fit a small network of convolutions: {problem.what}") from problem
    tensors = network.tensors()
    with torch.no_grad():
        for name in preparation.changing:
            if tensors[name].is_floating_point():
                tensors[name].add_(STEP)
    try:
        preparation.finish()
    except GateError as problem:
        raise CheckFailed(problem.what, do=problem.do or "undo it") from problem
