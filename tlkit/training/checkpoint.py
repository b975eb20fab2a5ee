"""Checkpoints: the state of a training on disk, from which it resumes bit-identically.

A checkpoint is one safetensors file, tensors and, as JSON in its header, the rest; nothing in it can execute. It is
written atomically, with the SHA-256 of both, and the one before it is kept.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from tlkit.errors import ResourceError
from tlkit.model.trunk import hash_tensors
from tlkit.util.files import atomic_file, translate_os_errors
from tlkit.util.schema import parse_json

KEPT = 2
SECONDS = 10.0  # between two within a phase; a killed run repeats at most this, and the epoch it was in

Tensors = dict[str, Tensor]


@dataclass
class Checkpoint:
    """State of a training after an epoch: weights, the best weights, optimizer and history."""

    phase: int
    epoch: int
    stale_epochs: int  # since the best
    best_loss: float
    history: list[dict[str, Any]]
    weights: Tensors
    best: Tensors = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
    optimizer: Tensors = field(default_factory=dict)  # "0.exp_avg", …: its state for each parameter
    scaler: dict[str, Any] = field(default_factory=dict)
    micro_batches: int = 1  # per batch, see `Device`

    GROUPS: ClassVar = ("weights", "best", "average", "optimizer")  # of tensors
    FACTS: ClassVar = ("phase", "epoch", "stale_epochs", "best_loss", "history", "scaler", "micro_batches")


def optimizer_state(optimizer: Optimizer) -> Tensors:
    """Return the state of an optimizer, by the number of the parameter and the name of the tensor."""
    state: Mapping[int, Mapping[str, Any]] = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, each in state.items() for name, value in each.items()}


def load_optimizer_state(optimizer: Optimizer, tensors: Tensors) -> None:
    """Give an optimizer of the same parameters this state."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        like = parameters[int(number)]
        # Fused steps go through memory in its order, so the state of a parameter needs the parameter's layout.
        placed = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        state.setdefault(int(number), {})[name] = placed
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


class Checkpoints:
    """The checkpoints of one run in a folder."""

    def __init__(self, folder: Path, *, warn: Callable[[str], None], seconds: float = SECONDS) -> None:
        self.folder, self.warn, self.seconds = folder, warn, seconds
        self.saved = time.monotonic()

    def files(self) -> list[Path]:
        """Return the files, newest first."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True)

    def due(self) -> bool:
        """Return True if the last one is `seconds` old."""
        return time.monotonic() - self.saved >= self.seconds

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one; raises a ResourceError if that fails, with those before intact."""
        groups = {group: getattr(checkpoint, group) for group in Checkpoint.GROUPS}
        tensors = {
            f"{group}/{name}": value.detach().cpu().contiguous().clone()
            for group, values in groups.items()
            for name, value in values.items()
        }
        facts = json.loads(json.dumps({name: getattr(checkpoint, name) for name in Checkpoint.FACTS}))
        facts["sha256"] = _hash(tensors, facts)
        file = self.folder / f"checkpoint-{checkpoint.phase:04}-{checkpoint.epoch:06}.safetensors"
        try:
            with atomic_file(file) as temporary, translate_os_errors(file):
                temporary.write_bytes(save(tensors, {"tlkit": json.dumps(facts)}))
        except ResourceError as error:
            do = "free some space and continue with --resume; the checkpoint before is intact"
            raise ResourceError(error.what, file=file, do=do) from error
        for old in self.files()[KEPT:]:
            old.unlink(missing_ok=True)
        self.saved = time.monotonic()

    def newest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint; damaged ones are skipped with a warning."""
        for file in self.files():
            try:
                return _read(file)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                self.warn(f"{file}: skipped a damaged checkpoint ({error}); resuming from the one before")
        return None


def _hash(tensors: Tensors, facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the tensors and the facts of a checkpoint."""
    return hashlib.sha256(f"{hash_tensors(tensors)} {json.dumps(facts, sort_keys=True)}".encode()).hexdigest()


def _read(file: Path) -> Checkpoint:
    with safe_open(file, framework="pt") as opened:
        facts = parse_json(opened.metadata()["tlkit"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    if facts.pop("sha256") != _hash(tensors, facts):
        raise ValueError("its content does not match its hash")
    groups: dict[str, Tensors] = {group: {} for group in Checkpoint.GROUPS}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        groups[group][name] = value
    return Checkpoint(**{**facts, **groups})
