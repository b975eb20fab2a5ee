"""Checks of the state that a bundle stores."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from tlkit.conformance.backbone.subject import BackboneSubject
from tlkit.conformance.subject import Skipped, expect
from tlkit.model import trunk as trunks
from tlkit.util.text import listed


def state_is_finite(subject: BackboneSubject) -> None:
    """Every stored value is finite: a bundle that holds anything else is refused."""
    state = subject.built.state_dict()
    odd = [name for name, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    do = "register constants such as masks with `persistent=False`, and build them again from the structure"
    expect(not odd, f"values are not finite: {listed(odd)}", do=do)


def state_survives_safetensors(subject: BackboneSubject) -> None:
    """The state comes back from a safetensors file to the bit."""
    before = trunks.tensors(subject.built)
    after = load(save(before))
    changed = [name for name in before if not _identical(before[name], after[name])]
    expect(
        not changed, f"tensors change when they are stored: {listed(changed)}", do="use plain tensors of common types"
    )


def state_is_complete(subject: BackboneSubject) -> None:
    """Another build that is given the state computes the same: nothing that was learned is outside it."""
    other = subject.random_trunk()
    trunks.load_tensors(other, trunks.tensors(subject.trunk), what="trunk")
    expect(
        np.array_equal(subject.run(other)[-1], subject.features[-1]),
        "two builds with the same state compute different features",
        do="register every weight as a parameter or a persistent buffer, and draw nothing at random besides",
    )


def fingerprint_is_stable(subject: BackboneSubject) -> None:
    """Two builds of the same weights have the same fingerprint, or no graph and no feature would be used again."""
    other = subject.random_trunk()
    trunks.load_tensors(other, trunks.tensors(subject.built), what="trunk")
    shown = re.search(r"at 0x[0-9a-f]+", repr(other))
    expect(
        shown is None and trunks.fingerprint(other) == trunks.fingerprint(subject.built),
        "the structure differs from build to build as it is shown" + (f": ...{shown.group()}..." if shown else ""),
        do="keep what changes from process to process out of `extra_repr`",
    )


def random_weights_are_random(subject: BackboneSubject) -> None:
    """`stages(pretrained=False)` gives other weights each time: none were loaded, and none are constant."""
    first, second = (dict(subject.random_trunk().named_parameters()) for _ in range(2))
    pairs = [(one, second[name]) for name, one in first.items() if one.ndim >= 2]
    if not pairs:
        raise Skipped("it has no matrices and no filters")
    differing = sum(int((one != other).sum()) for one, other in pairs)
    share = differing / sum(one.numel() for one, _ in pairs)
    expect(
        share > 0.5,
        f"only {share:.0%} of the weights of two builds differ",
        do="with `pretrained=False`, leave the weights as PyTorch initializes them",
    )


def _identical(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
