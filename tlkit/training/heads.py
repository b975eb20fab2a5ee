"""Heads on computed features: solved or trained by gradient, and solved again on those of a fine-tuned trunk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tlkit.errors import DataError, UsageError
from tlkit.evaluation.metrics import score
from tlkit.model.modules import head_logits, solve_head
from tlkit.plugin.contract import Head, Phase
from tlkit.training.device import Device
from tlkit.training.freezing import Network
from tlkit.training.history import Line, Monitor
from tlkit.training.inputs import Examples
from tlkit.training.trainer import FitResult, Trainer
from tlkit.util.statistics import activated

_TO_AUTHOR = "report this to the author of the head: solve() has to return a module"


def solve_or_fit(
    head: Head,
    phases: Sequence[Phase],
    train: Examples,
    val: Examples,
    classes: int,
    *,
    seed: int,
    monitor: Monitor | None = None,
) -> tuple[nn.Module, FitResult]:
    """Return the head, solved if it can be, otherwise trained by gradient, and its history."""
    solved = solve_head(head, train.features, train.labels, classes, seed, train.groups)
    if solved is not None:
        return solved.eval(), FitResult([{"phase": 1, "solved": head.name, **head.report(solved)}])
    return fit_head(head.module(train.features.shape[1], classes), phases, train, val, seed=seed, monitor=monitor)


def fit_head(
    head: nn.Module,
    phases: Sequence[Phase],
    train: Examples,
    val: Examples,
    *,
    seed: int = 0,
    device: Device | None = None,
    monitor: Monitor | None = None,
) -> tuple[nn.Module, FitResult]:
    """Train a head on features, in place; return it in eval mode with the weights of its best epoch on `val`."""
    device, monitor = device or Device(), monitor or Monitor()
    network = Network(head, device=device.torch_device)
    return head, Trainer(network, phases, train, val, seed=seed, device=device, monitor=monitor).fit()


def refit_head(
    head: Head, trained: nn.Module, train: Examples, val: Examples, classes: int, seed: int
) -> tuple[nn.Module, list[Line]]:
    """Return the head solved on the features of the deployed trunk, if that is no worse on `val`.

    It is no worse if neither balanced accuracy nor log loss are. Otherwise, and if it can't be solved, the trained
    one; and the lines to add to the history. In place of a stand-in the head is solved in any case.
    """
    stand_in = head.stand_in()
    try:
        solved = solve_head(head, train.features, train.labels, classes, seed, train.groups)
    except DataError as problem:
        if stand_in is not None:
            raise
        return trained, [{"solved": head.name, "kept": False, "because": problem.what}]
    if stand_in is not None:
        if solved is None:
            raise UsageError(f"the head {head.name!r} names a stand-in, and was not solved", do=_TO_AUTHOR)
        return solved.eval(), [{"solved": head.name, "trained": stand_in.name, **head.report(solved)}]
    if solved is None:
        return trained, []
    before, after = (
        score(probabilities(module.eval(), val.features, head.activation), val.labels) for module in (trained, solved)
    )
    kept = after.balanced_accuracy >= before.balanced_accuracy and after.log_loss <= before.log_loss
    line = {
        "solved": head.name,
        "kept": kept,
        "val_loss": after.log_loss,
        "val_accuracy": after.accuracy,
        "val_balanced_accuracy": after.balanced_accuracy,
        "trained_val_loss": before.log_loss,
        "trained_val_accuracy": before.accuracy,
        "trained_val_balanced_accuracy": before.balanced_accuracy,
    }
    return solved if kept else trained, [{**line, **head.report(solved)}]


def probabilities(head: nn.Module, features: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    """Return class probabilities `(N, classes)` for features `(N, width)`."""
    return activated(head_logits(head, features), activation)
