"""A plugin that imports its framework where it is declared."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.kit.tiny import Tiny


@dataclass(frozen=True)
class Heavy(Tiny):
    seed: int = torch.initial_seed() % 7
