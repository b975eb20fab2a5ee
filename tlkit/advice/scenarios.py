"""The four transfer-learning scenarios (CS231n), and their agreement with the evidence.

The rule as it is taught (Karpathy, "CS231n: Transfer Learning", Stanford, after Yosinski et al., NeurIPS 2014): a small
dataset similar to the original, a classifier on the deepest features; a large similar one, fine-tune; a small different
one, a classifier on the features of an earlier stage; a large different one, fine-tune the whole network.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlkit.advice.domain_shift import Domain


@dataclass(frozen=True, slots=True)
class Scenario:
    """One of the four: its rule, and if that asks for an earlier cut or for fine-tuning."""

    name: str
    rule: str
    earlier_cut: bool = False
    fine_tunes: bool = False


SCENARIOS: dict[tuple[bool, Domain], Scenario] = {
    (False, "similar"): Scenario("small and similar", "train only a classifier, on the deepest features"),
    (True, "similar"): Scenario(
        "large and similar", "fine-tune the network with a small learning rate", fine_tunes=True
    ),
    (False, "different"): Scenario(
        "small and different", "train only a classifier, on the features of an earlier stage", earlier_cut=True
    ),
    (True, "different"): Scenario(
        "large and different", "fine-tune the whole network from the pretrained weights", fine_tunes=True
    ),
}


def find_scenario(large: bool, domain: Domain) -> Scenario | None:
    """Return the scenario that applies; None if the domain shift is unclear or unknown."""
    return SCENARIOS.get((large, domain))


def agreement(scenario: Scenario, *, cut: str, deepest: str, fine_tunes: bool, error: float) -> tuple[bool, str]:
    """Return True if the evidence agrees with the rule, and the reason.

    `error` is the share of images that frozen features misclassify; `fine_tunes`: the recommendation fine-tunes.
    """
    if scenario.fine_tunes or fine_tunes:
        reason = f"frozen features misclassify {error:.1%} of the images"
    elif cut == deepest:
        reason = f"no earlier stage has better features than {deepest}"
    else:
        reason = f"{cut} has better features than {deepest}"
    agrees = scenario.fine_tunes == fine_tunes and (fine_tunes or scenario.earlier_cut == (cut != deepest))
    return agrees, f"the evidence {'agrees' if agrees else 'does not agree'}: {reason}"
