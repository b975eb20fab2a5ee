"""Every check can fail: for each there is a plugin that is broken in just that way."""

from __future__ import annotations

import pytest
from tlkit_standard.detectors import DETECTORS
from tlkit_standard.sources import SOURCES
from tlkit_standard.strategies import STRATEGIES
from tlkit_standard.targets import TARGETS

from tests.conformance.broken import backbones, detectors, heads, sources, strategies, targets
from tests.kit.tiny import Line, Tiny
from tlkit.conformance import CheckFailed, checks, run
from tlkit.plugin.kinds import KINDS

GOOD = {
    "backbone": Tiny(),
    "head": Line(),
    "detector": DETECTORS[0],
    "source": SOURCES[0],
    "strategy": STRATEGIES[0],
    "target": TARGETS[0],
}
BROKEN = {
    "backbone": backbones.BROKEN,
    "head": heads.BROKEN,
    "detector": detectors.BROKEN,
    "source": sources.BROKEN,
    "strategy": strategies.BROKEN,
    "target": targets.BROKEN,
}
CASES = [(kind, check) for kind, broken in BROKEN.items() for check in broken]


def names(component):
    return [check.name for check in checks(component)]


def test_there_is_a_broken_plugin_for_every_check():
    assert set(GOOD) == set(KINDS)
    shared = set.intersection(*(set(names(component)) for component in GOOD.values()))
    assert len(shared) == 6
    for kind, component in GOOD.items():
        asked_for = set(names(component)) - (shared if kind != "backbone" else set())
        assert set(BROKEN[kind]) == asked_for
    assert len(names(GOOD["backbone"])) >= 50


@pytest.mark.parametrize(("kind", "check"), CASES, ids=map("-".join, CASES))
def test_it_is_found_by_its_check_and_said_to_its_author(kind, check):
    component, saying, reference = BROKEN[kind][check]
    with pytest.raises(CheckFailed, match=saying) as failed:
        dict(checks(component, reference=reference, pretrained=_needs_weights(check)))[check]()
    assert failed.value.do
    assert not str(failed.value).startswith("it depends on")


@pytest.mark.parametrize("kind", GOOD)
def test_the_unbroken_ones_pass(kind):
    results = run(GOOD[kind], pretrained=True)
    assert [f"{each.name}: {each.reason}" for each in results if each.state == "fail"] == []
    skipped = {each.name for each in results if each.state == "skip"}
    assert skipped <= {
        "classifier-fits",
        "features-equal-the-library",
        "local-options-keep-the-structure",
        "logits-equal-the-library",
        "preprocessing-equals-the-library",
        "scores-are-float32",
    }


def _needs_weights(check):
    return check.startswith("pretrained-") or check in {
        "classifier-fits",
        "hash-of-the-weights",
        "logits-equal-the-library",
    }
