"""Blended weights: 0 is the frozen trunk, 1 the fine-tuned one, to the bit; between, statistics are recomputed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.kit.course import fine_tuning
from tests.kit.tiny import Line, Tiny
from tlkit.errors import UsageError
from tlkit.model import trunk as trunks
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import Phase
from tlkit.training import run as training
from tlkit.training.blending import ALPHAS, blend_weights, weights
from tlkit.training.run import train

PHASE = Phase(2, 0.05, trunk_lr=0.02, trainable=2, batch_size=8)


@pytest.fixture
def config(tiny_config, logistic):
    return replace(tiny_config, head=logistic, **fine_tuning(PHASE))


@pytest.fixture(scope="module")
def logistic():
    from tlkit_standard.heads import HEADS

    return next(head for head in HEADS if head.name == "logistic")


def test_0_is_the_frozen_trunk_and_1_the_fine_tuned_one(pictures, config, tmp_path):
    from tlkit_standard.strategies import STRATEGIES

    frozen = next(each for each in STRATEGIES if each.name == "frozen")
    names = {"none": {"blend": 0.0}, "whole": {}, "frozen": {"strategy": frozen}}
    for name, changes in names.items():
        train(pictures, tmp_path / name, replace(config, **changes))
    none, whole, only_head = (open_bundle(tmp_path / name) for name in names)
    for kind in ("trunk", "head"):
        one, other = getattr(none, kind), getattr(only_head, kind)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert set(none.record.provenance.values()) == {"original"}
    assert (none.record.training["blend"], whole.record.training["blend"]) == (0.0, 1.0)
    assert not all(np.array_equal(none.trunk[name], whole.trunk[name]) for name in whole.trunk)


def test_auto_takes_the_best_on_the_validation_images(pictures, config, tmp_path, monkeypatch):
    seen, score = [], training.score

    def scored(probabilities, labels):
        metrics = score(probabilities, labels)
        seen.append(metrics)
        return replace(metrics, balanced_accuracy=float(len(seen) == 2), log_loss=0.0)  # of the second alpha

    monkeypatch.setattr(training, "score", scored)
    train(pictures, tmp_path / "run", replace(config, blend="auto"))
    bundle, original = open_bundle(tmp_path / "run"), trunks.tensors(trunks.build(Tiny()))
    assert len(seen) == len(ALPHAS)
    assert bundle.record.training["blend"] == ALPHAS[1] == 0.5
    assert json.loads((tmp_path / "run/history.jsonl").read_text().splitlines()[-1])["blend"] == 0.5
    monkeypatch.undo()
    train(pictures, tmp_path / "whole", config)
    tuned, name = open_bundle(tmp_path / "whole").trunk, "stages.third.0.weight"
    assert np.allclose(bundle.trunk[name], (original[name] + tuned[name]) / 2, atol=1e-6)


def test_changed_running_statistics_are_recomputed(pictures):
    trunk = trunks.build(Tiny())
    images, before = sorted(pictures.rglob("*.png"))[:6], weights(trunk)
    tuned = {
        name: tensor + 1.0 if "second" in name and "running" in name else tensor for name, tensor in before.items()
    }
    blend_weights(trunk, before, tuned, 0.5, images)
    inputs = []
    norm = next(each for each in trunk.stages["second"].modules() if isinstance(each, torch.nn.BatchNorm2d))
    norm.register_forward_hook(lambda _module, given, _output: inputs.append(given[0]))
    from tlkit.data.preprocessing import load

    trunk(torch.from_numpy(np.stack([load(path, trunk.preprocessing) for path in images])))
    assert torch.allclose(norm.running_mean, inputs[0].mean((0, 2, 3)), atol=1e-5)
    after = weights(trunk)
    same = [name for name in before if "first" in name]
    assert all(torch.equal(before[name], after[name]) for name in same)
    assert not norm.training


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strategy": fine_tuning(replace(PHASE, reinit=1))["strategy"]}, "reinitialized stages can't be blended"),
        ({"refit": False}, "has to be solved again; leave out --blend"),
        ({"head": Line()}, "has to be solved again; leave out --blend"),
    ],
)
def test_what_cannot_be_blended_is_refused(pictures, config, tmp_path, changes, says):
    with pytest.raises(UsageError, match=says):
        train(pictures, tmp_path / "run", replace(config, blend=0.5, **changes))
