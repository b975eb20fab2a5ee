"""Every component of the standard plugin keeps the contract, or carries a reason."""

from __future__ import annotations

import pytest

from tlkit.conformance import run
from tlkit.plugin import registry

COMPONENTS = [
    registered
    for plugin in registry.load().plugins
    if plugin.distribution == "tlkit"
    for registered in plugin.components
    if registered.state == "ok"
]
SLOW = {("backbone", "efficientnet-lite1"), ("backbone", "efficientnet-lite2")}


def case(registered):
    marks = [pytest.mark.slow] if (registered.kind, registered.name) in SLOW else []
    return pytest.param(registered.component, id=f"{registered.kind}-{registered.name}", marks=marks)


def failures(results):
    return [f"{each.name}: {each.reason}" for each in results if each.state == "fail"]


def test_there_are_components_of_every_kind():
    kinds = [registered.kind for registered in COMPONENTS]
    known = {"backbone", "head", "detector", "source", "strategy", "target"}
    assert {kind: kinds.count(kind) for kind in kinds}.keys() == known
    assert len(COMPONENTS) >= 12


@pytest.mark.parametrize("component", [case(registered) for registered in COMPONENTS])
def test_it_keeps_the_contract(component):
    results = run(component)
    assert len(results) >= 12
    assert failures(results) == []


@pytest.mark.slow
@pytest.mark.parametrize("component", [case(registered) for registered in COMPONENTS if registered.kind == "backbone"])
def test_with_its_pretrained_weights_too(component):
    results = run(component, pretrained=True)
    assert failures(results) == []
    assert [each.name for each in results if each.state == "skip"] == [
        "preprocessing-equals-the-library",
        "local-options-keep-the-structure",
        "features-equal-the-library",
        "logits-equal-the-library",
    ]
