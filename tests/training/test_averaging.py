"""The average of trunks: their mean weights, under a head that is solved on its features."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tlkit_standard.heads import HEADS

from tests.kit.course import fine_tuning
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import Phase
from tlkit.training.averaging import average
from tlkit.training.run import train

PHASE = Phase(2, 0.05, trunk_lr=0.02, trainable=2, batch_size=8)


@pytest.mark.parametrize("batchnorm", ["freeze", "update"])
def test_the_trunk_is_the_mean_and_the_head_is_solved_on_its_features(pictures, tiny_config, tmp_path, batchnorm):
    head = next(head for head in HEADS if head.name == "logistic")
    config = replace(tiny_config, head=head, **fine_tuning(replace(PHASE, batchnorm=batchnorm)))
    places = [tmp_path / str(seed) for seed in range(3)]
    for seed, place in enumerate(places):
        train(pictures, place, replace(config, seed=seed))
    trained = average(pictures, tmp_path / "mean", config, places, lambda *_: lambda *_: None)
    bundle, parts = open_bundle(tmp_path / "mean"), [open_bundle(place) for place in places]
    tuned = [name for name in bundle.trunk if not np.array_equal(parts[0].trunk[name], parts[1].trunk[name])]
    again = {name.rpartition(".")[0] for name in tuned if "running_" in name}  # norms whose statistics are computed
    assert bool(again) is (batchnorm == "update")
    for name, tensor in bundle.trunk.items():
        norm, _, what = name.rpartition(".")
        mean = np.mean([part.trunk[name] for part in parts], axis=0)
        computed = norm in again and what not in ("weight", "bias")
        assert np.allclose(tensor, mean, atol=1e-6) is not computed, name
    assert bundle.record.provenance == parts[0].record.provenance
    assert bundle.record.training["averaged"] == 3
    averaged, solved = map(json.loads, (bundle.root / "history.jsonl").read_text().splitlines())
    assert (averaged, solved["solved"], solved["kept"]) == ({"averaged": 3}, "logistic", True)
    assert trained.metrics.accuracy > 0.9
