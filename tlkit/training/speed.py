"""How long an image takes to learn from on this machine, from a step on black pictures."""

from __future__ import annotations

import copy
import time

import torch
from torch import nn

from tlkit.model.trunk import Trunk
from tlkit.training.freezing import Network
from tlkit.training.gradients import narrow_kernels
from tlkit.util.resources import keep_freed_memory

BATCH = 4


def seconds_an_image(trunk: Trunk, trainable: int) -> float:
    """Seconds to learn from one image while the `moving` deepest stages learn, decoding not counted.

    The trunk stays as it is: a copy of it learns.
    """
    size, width = trunk.preprocessing.size, trunk.width
    frozen, learning = Network(copy.deepcopy(trunk), nn.Linear(width, 2)).part(trainable)
    learning.train()
    images = torch.zeros(BATCH, size, size, 3, dtype=torch.uint8)
    labels = torch.zeros(BATCH, dtype=torch.int64)

    def step() -> None:
        with torch.no_grad():
            given = frozen(images)
        loss: torch.Tensor = nn.functional.cross_entropy(learning(given), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    with keep_freed_memory(), narrow_kernels(torch.device("cpu")):
        step()  # the first one reserves memory
        started = time.perf_counter()
        step()
        return (time.perf_counter() - started) / BATCH
