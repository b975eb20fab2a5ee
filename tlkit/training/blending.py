"""Blended weights: between those of the pretrained trunk and those of the fine-tuned one.

`w0 + alpha (w - w0)` keeps some of what the pretraining learned, at no cost in deployment (Wortsman et al., "Robust
Fine-Tuning of Zero-Shot Models", CVPR 2022). An alpha of 0 is the pretrained trunk and 1 the fine-tuned one, both
bit-identical. The head is solved again on the features of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tlkit.data.preprocessing import load
from tlkit.errors import UsageError
from tlkit.model.batchnorm import batch_norms
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import Head, Phase

Blend = float | Literal["auto"]

ALPHAS = (0.25, 0.5, 0.75, 1.0)  # to choose from
MEASURED, BATCH_SIZE = 512, 32  # images that running statistics are computed on


def alphas(blend: Blend) -> tuple[float, ...]:
    """Return the alphas to choose from."""
    return ALPHAS if blend == "auto" else (blend,)


def check_blend(blend: Blend, head: Head, phases: Sequence[Phase], *, refit: bool) -> None:
    """Raise a UsageError for weights that can't be blended."""
    if blend != "auto" and not 0 <= blend <= 1:
        raise UsageError(f"the share {blend:g} to blend is not between 0 and 1")
    if blend == 1.0:
        return
    if any(phase.reinit for phase in phases):
        what = "weights of reinitialized stages can't be blended with pretrained ones"
        raise UsageError(what, do="leave out --blend")
    if not refit or type(head).solve is Head.solve:
        what = "the head of a blended trunk has to be solved again"
        raise UsageError(what, do="leave out --blend, or choose another head and leave out --no-refit")


def weights(trunk: Trunk) -> dict[str, Tensor]:
    """Return a copy of all parameters and buffers."""
    return {name: tensor.clone() for name, tensor in trunk.state_dict().items()}


def blend_weights(
    trunk: Trunk, pretrained: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float, images: Sequence[Path]
) -> None:
    """Give a trunk the blended weights; running statistics that training changed are computed from the images."""
    ends = {0.0: pretrained, 1.0: tuned}
    if alpha in ends:
        trunk.load_state_dict(ends[alpha])
        return
    floats = {name: tensor for name, tensor in tuned.items() if tensor.is_floating_point()}
    trunk.load_state_dict({**tuned, **{name: pretrained[name].lerp(each, alpha) for name, each in floats.items()}})
    changed = [name for name, each in floats.items() if "running_" in name and not torch.equal(each, pretrained[name])]
    norms = [
        norm
        for name, norm in trunk.named_modules()
        if norm in batch_norms([trunk]) and any(each.startswith(f"{name}.") for each in changed)
    ]
    if not norms:
        return
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    chosen = images[:: -(-len(images) // MEASURED)]
    with torch.no_grad():
        for start in range(0, len(chosen), BATCH_SIZE):
            batch = [load(path, trunk.preprocessing) for path in chosen[start : start + BATCH_SIZE]]
            trunk(torch.from_numpy(np.stack(batch)))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()
