"""The one loop over phases: a head that learns by gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tlkit.errors import DataError, UsageError
from tlkit.plugin.contract import Phase

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_SIZE = 64
WEIGHT_DECAY = 1e-2  # AdamW's own default (Loshchilov and Hutter 2019)


@dataclass(frozen=True, slots=True)
class Examples:
    """Features `(N, width)` and labels `(N,)`."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def check_phases(phases: Sequence[Phase], stages: Sequence[str]) -> None:
    """Refuse phases that can't be run, all problems at once."""
    problems = []
    for number, phase in enumerate(phases, start=1):
        if phase.epochs < 1:
            problems.append(f"phase {number} has {phase.epochs} epochs")
        if phase.moving > len(stages):
            problems.append(f"phase {number} moves {phase.moving} stages of {len(stages)}")
        elif phase.moving or phase.restart:
            problems.append(f"phase {number} moves the trunk, which this version can't do yet")
    if not phases:
        problems.append("there are no phases")
    if problems:
        raise UsageError(f"the strategy can't be run: {'; '.join(problems)}")


def fit(
    head: nn.Module,
    phases: Sequence[Phase],
    train: Examples,
    val: Examples,
    *,
    seed: int,
    tick: Callable[[int], None],
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train a head on features; returns it with the weights of its best epoch on `val`, and a line for each epoch.

    AdamW with a cosine schedule in each phase; the best epoch is the one with the least loss. `tick(n)` is called
    whenever n more epochs are done.
    """
    generator = torch.Generator().manual_seed(seed)
    features, labels = torch.from_numpy(train.features), torch.from_numpy(train.labels)
    loss_of = nn.CrossEntropyLoss()
    best, best_loss, history = copy.deepcopy(head.state_dict()), float("inf"), []
    for number, phase in enumerate(phases, start=1):
        optimiser = torch.optim.AdamW(head.parameters(), lr=phase.head_lr, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, phase.epochs)
        for epoch in range(1, phase.epochs + 1):
            head.train()
            total = 0.0
            for rows in torch.split(torch.randperm(len(labels), generator=generator), BATCH_SIZE):
                loss = loss_of(head(features[rows]), labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item() * len(rows)
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            line = {"phase": number, "epoch": epoch, "lr": rate, "train_loss": total / len(labels)}
            line |= evaluate(head, val)
            if not np.isfinite(line["train_loss"]):
                raise DataError(f"the loss is {line['train_loss']} in phase {number}, epoch {epoch}, at rate {rate:g}")
            if line["val_loss"] < best_loss:
                best, best_loss = copy.deepcopy(head.state_dict()), line["val_loss"]
            history.append(line)
            tick(1)
    head.load_state_dict(best)
    return head.eval(), history


def evaluate(head: nn.Module, examples: Examples) -> dict[str, float]:
    """Mean cross-entropy and accuracy."""
    labels = torch.from_numpy(examples.labels)
    with torch.inference_mode():
        logits = head.eval()(torch.from_numpy(examples.features))
        loss = nn.functional.cross_entropy(logits, labels).item()
        return {"val_loss": loss, "val_accuracy": (logits.argmax(1) == labels).float().mean().item()}
