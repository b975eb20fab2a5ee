"""Heads on features that are there: solved or trained by gradient, and solved again on those of a trunk that moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlkit.errors import DataError
from tlkit.evaluation.metrics import score
from tlkit.model.modules import head_logits
from tlkit.plugin.contract import Head, Phase
from tlkit.training.inputs import Examples
from tlkit.training.steps import Line
from tlkit.training.trainer import FitResult, Setting, fit_head
from tlkit.util.statistics import softmax

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


def solve_or_fit(
    head: Head,
    phases: Sequence[Phase],
    train: Examples,
    val: Examples,
    classes: int,
    setting: Setting,
) -> tuple[nn.Module, FitResult]:
    """The head, solved where it can be, otherwise trained by gradient; and the history of that."""
    solved = head.solve(train.features, train.labels, classes, setting.seed)
    if solved is not None:
        return solved.eval(), FitResult([{"phase": 1, "solved": head.name, **report(solved)}])
    module = head.module(train.features.shape[1], classes)
    return fit_head(module, phases, train, val, setting)


def refit(
    head: Head, trained: nn.Module, train: Examples, val: Examples, classes: int, seed: int
) -> tuple[nn.Module, list[Line]]:
    """The head solved on the features of the deployed trunk, if that loses neither accuracy nor log-loss on `val`.

    Otherwise, and where it can't be solved, the one that was trained; and what to add to the history.
    """
    try:
        solved = head.solve(train.features, train.labels, classes, seed)
    except DataError as problem:
        return trained, [{"solved": head.name, "kept": False, "because": problem.what}]
    if solved is None:
        return trained, []
    before, after = (score(probabilities(module.eval(), val.features), val.labels) for module in (trained, solved))
    kept = after.accuracy >= before.accuracy and after.log_loss <= before.log_loss
    seen = {"val_loss": after.log_loss, "val_accuracy": after.accuracy}
    trained_seen = {"trained_val_loss": before.log_loss, "trained_val_accuracy": before.accuracy}
    return solved if kept else trained, [{"solved": head.name, "kept": kept, **seen, **trained_seen, **report(solved)}]


def report(head: nn.Module) -> dict[str, Any]:
    """What a head found out while it was solved."""
    return dict(getattr(head, "report", {}))


def probabilities(head: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities `(N, classes)` of features `(N, width)`."""
    return softmax(head_logits(head, features))
