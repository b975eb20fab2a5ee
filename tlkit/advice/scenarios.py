"""The four cases of the craft, and whether this data's evidence agrees.

The rule as it is taught (Karpathy, "CS231n: Transfer Learning", Stanford, after Yosinski et al., NeurIPS 2014): little
data like the original, a classifier on the deepest features; much data like it, fine-tune; little data unlike it, a
classifier on the features of an earlier stage; much data unlike it, fine-tune the whole network.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlkit.advice.domain_shift import Likeness


@dataclass(frozen=True, slots=True)
class Case:
    """One of the four: what the rule says, whether it wants an earlier cut, whether it wants the trunk to move."""

    name: str
    says: str
    earlier: bool
    tunes: bool


CASES = {
    (False, "alike"): Case(
        "small and alike", "train only a classifier, on the deepest features", earlier=False, tunes=False
    ),
    (True, "alike"): Case("large and alike", "fine-tune the network, gently", earlier=False, tunes=True),
    (False, "unlike"): Case(
        "small and unlike", "train only a classifier, on the features of an earlier stage", earlier=True, tunes=False
    ),
    (True, "unlike"): Case(
        "large and unlike", "fine-tune the whole network, from the pretrained weights", earlier=False, tunes=True
    ),
}


def case_of(large: bool, likeness: Likeness) -> Case | None:
    """The case that applies; None where nobody can say how alike the data are."""
    return CASES.get((large, likeness))


def agreement(case: Case, *, cut: str, deepest: str, tunes: bool, room: float) -> tuple[bool, str]:
    """Whether the evidence agrees with the rule, and in which words.

    `room`: the share of images that frozen features leave to be gained; `tunes`: whether the trunk is to move.
    """
    gain = f"frozen features leave {room:.1%} of the images to be gained"
    if case.tunes and not tunes:
        return False, f"the evidence does not agree: {gain}, so the trunk stays as it is"
    if tunes:
        return case.tunes, f"the evidence {'agrees' if case.tunes else 'does not agree'}: {gain}"
    further = f"the features of {cut} go further than those of {deepest}"
    if cut == deepest:
        further = f"the features of no earlier stage go further than those of {deepest}"
    agrees = case.earlier == (cut != deepest)
    return agrees, f"the evidence {'agrees' if agrees else 'does not agree'}: {further}"
