"""Where training is, on disk: enough to go on from there as if nothing had happened.

A checkpoint is one safetensors file, tensors and, as JSON in its header, the rest; nothing in it can execute. It is
written whole or not at all, with the SHA-256 of what it holds, and the one before stays beside it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tlkit.errors import ResourceError
from tlkit.model.trunk import hash_tensors
from tlkit.util.files import atomic_file, translate_os_errors

if TYPE_CHECKING:
    from torch.optim import Optimizer

KEPT = 2
SECONDS = 10.0  # between two within a phase; what a killed run does again at most, beside the epoch it was in

Tensors = dict[str, Tensor]


@dataclass
class Checkpoint:
    """Where training is after an epoch: the weights now and at their best, what drives them, and the history."""

    phase: int
    epoch: int
    waited: int  # epochs since the best
    loss: float  # of the best
    history: list[dict[str, Any]]
    now: Tensors
    best: Tensors = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
    optimizer: Tensors = field(default_factory=dict)  # "0.exp_avg", …: what it remembers of each parameter
    scaler: dict[str, Any] = field(default_factory=dict)

    GROUPS = ("now", "best", "average", "optimizer")


def memories(optimizer: Optimizer) -> Tensors:
    """What an optimiser remembers, by the number of the parameter and the name of the memory."""
    state: Mapping[int, Mapping[str, Any]] = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, each in state.items() for name, value in each.items()}


def remember(optimizer: Optimizer, memories: Tensors) -> None:
    """Give an optimiser of the same parameters these memories."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in memories.items():
        number, _, name = key.partition(".")
        like = parameters[int(number)]
        # Fused steps go through memory in its order, so that of a parameter's memories has to be the parameter's.
        placed = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        state.setdefault(int(number), {})[name] = placed
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


class Checkpoints:
    """The checkpoints of one run in a folder."""

    def __init__(self, folder: Path, *, warn: Callable[[str], None], seconds: float = SECONDS) -> None:
        self.folder, self.warn, self.seconds = folder, warn, seconds
        self.saved = time.monotonic()

    def files(self) -> list[Path]:
        """Those that are there, newest first."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True)

    def due(self) -> bool:
        """Whether the last one is some time ago."""
        return time.monotonic() - self.saved >= self.seconds

    def save(self, state: Checkpoint) -> None:
        """Write one; raises a ResourceError where that fails, with those before intact."""
        tensors = {
            f"{group}/{name}": value for group in Checkpoint.GROUPS for name, value in getattr(state, group).items()
        }
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        names = ("phase", "epoch", "waited", "loss", "history", "scaler")
        facts = {name: getattr(state, name) for name in names} | {"sha256": hash_tensors(tensors)}
        file = self.folder / f"checkpoint-{state.phase:04}-{state.epoch:06}.safetensors"
        try:
            with atomic_file(file) as temporary, translate_os_errors(file):
                temporary.write_bytes(save(tensors, {"tlkit": json.dumps(facts)}))
        except ResourceError as error:
            do = "free some space and go on with --resume; the checkpoint before is intact"
            raise ResourceError(error.what, file=file, do=do) from error
        for old in self.files()[KEPT:]:
            old.unlink(missing_ok=True)
        self.saved = time.monotonic()

    def newest(self) -> Checkpoint | None:
        """The newest one that is whole; those that are not are told of."""
        for file in self.files():
            try:
                return _read(file)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                self.warn(f"{file}: not a whole checkpoint ({error}); going on from the one before")
        return None


def _read(file: Path) -> Checkpoint:
    with safe_open(file, framework="pt") as opened:
        facts = json.loads(opened.metadata()["tlkit"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    if facts.pop("sha256") != hash_tensors(tensors):
        raise ValueError("it was changed")
    groups: dict[str, Tensors] = {group: {} for group in Checkpoint.GROUPS}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        groups[group][name] = value
    return Checkpoint(**{**facts, **groups})
