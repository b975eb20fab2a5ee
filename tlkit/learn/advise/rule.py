"""The four cases of the craft, and whether this data's evidence agrees.

The rule as it is taught (Karpathy, "CS231n: Transfer Learning", Stanford, after Yosinski et al., NeurIPS 2014): little
data like the original, a classifier on the deepest features; much data like it, fine-tune; little data unlike it, a
classifier on the features of an earlier stage; much data unlike it, fine-tune the whole network.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlkit.learn.advise.shift import Likeness


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


def agreement(case: Case, *, cut: str, deepest: str, ahead: float, tunes: bool, room: float) -> tuple[bool, str]:
    """Whether the evidence agrees with the rule, and in which words.

    `ahead`: by what share of accuracy the chosen cut is ahead of the deepest (or of the best earlier one, where it is
    the deepest itself). `room`: the share that the frozen features leave to be gained.
    """
    if case.tunes and not tunes:
        return False, (
            f"the evidence does not agree: frozen features leave only {room:.1%} of the images to be gained, "
            "so the trunk stays as it is"
        )
    if case.earlier and cut == deepest:
        return False, f"the evidence does not agree: {deepest} is ahead of every earlier stage, by {ahead:.1%} or more"
    if not case.earlier and cut != deepest and not tunes:
        return False, f"the evidence does not agree: {cut} is ahead of {deepest} by {ahead:.1%}"
    if case.earlier:
        return True, f"the evidence agrees: {cut} is ahead of {deepest} by {ahead:.1%}"
    if tunes:
        return True, f"the evidence agrees: frozen features leave {room:.1%} of the images to be gained"
    return True, f"the evidence agrees: {deepest} is ahead of every earlier stage, or as good"
