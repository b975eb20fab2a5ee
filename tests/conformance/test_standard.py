"""Everything that the standard plugin offers keeps the contract, or carries a reason."""

from __future__ import annotations

import pytest

from tlkit.conformance import run
from tlkit.plugin import registry

OFFERS = [
    offered
    for plugin in registry.load().plugins
    if plugin.distribution == "tlkit"
    for offered in plugin.offers
    if offered.state == "ok"
]
SLOW = {("backbone", "efficientnet-lite1"), ("backbone", "efficientnet-lite2")}


def case(offered):
    marks = [pytest.mark.slow] if (offered.kind, offered.name) in SLOW else []
    return pytest.param(offered.offer, id=f"{offered.kind}-{offered.name}", marks=marks)


def failures(results):
    return [f"{each.name}: {each.reason}" for each in results if each.state == "fail"]


def test_there_are_offers_of_every_kind():
    kinds = [offered.kind for offered in OFFERS]
    assert {kind: kinds.count(kind) for kind in kinds}.keys() == {"backbone", "head", "strategy", "target"}
    assert len(OFFERS) >= 12


@pytest.mark.parametrize("offer", [case(offered) for offered in OFFERS])
def test_it_keeps_the_contract(offer):
    results = run(offer)
    assert len(results) >= 14
    assert failures(results) == []


@pytest.mark.slow
@pytest.mark.parametrize("offer", [case(offered) for offered in OFFERS if offered.kind == "backbone"])
def test_with_its_pretrained_weights_too(offer):
    results = run(offer, pretrained=True)
    assert failures(results) == []
    assert [each.name for each in results if each.state == "skip"] == ["together-the-whole-network"]
