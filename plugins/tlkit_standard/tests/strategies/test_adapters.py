"""Strategies that train some stages, some parameters or low-rank updates, and leave everything else to the bit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import onnx
import pytest
import torch
from tlkit_standard.strategies.adapters import AnchoredTuning, BiasNorm, Lora, Surgical

from tests.kit.course import Stopped, Stops, course, same
from tests.kit.tiny import Seeded
from tlkit.conformance.merging import small_trunk
from tlkit.errors import UsageError
from tlkit.graph import trace
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import DatasetStatistics
from tlkit.training.freezing import Network, Preparation, prepare_stages

STATISTICS = DatasetStatistics(27, 3, 9, 9)
STAGES = ("first", "second", "third")
SHORT = {"epochs": 2, "probe_epochs": 2, "batch_size": 8, "trunk_lr": 0.02, "head_lr": 0.05, "lr_decay": 1.0}


def trained(strategy, pictures, work=None, monitor=None, **options):
    """Train the tiny network shortly by a strategy; return its weights, and the names of those that changed."""
    torch.manual_seed(3)
    before = trunks.build(Seeded()).state_dict()
    strategy = replace(strategy, **(SHORT | options))
    phases = tuple(strategy.phases(STAGES, STATISTICS))
    weights, _ = course(pictures, work, phases=phases, prepare=strategy.prepare, monitor=monitor, cache=False)
    return weights, {name for name, tensor in before.items() if not torch.equal(tensor, weights[name])}


@pytest.mark.parametrize(
    ("strategy", "changed"),
    [
        (Surgical(), {f"stages.first.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}),
        (
            Surgical(stages=("second",)),
            {f"stages.second.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")},
        ),
        (BiasNorm(), {f"stages.{stage}.{name}" for stage in STAGES for name in ("0.bias", "1.weight", "1.bias")}),
        (BiasNorm(norms=False), {f"stages.{stage}.{name}" for stage in STAGES for name in ("0.bias", "1.bias")}),
        (Lora(rank=2), {f"stages.{stage}.0.weight" for stage in STAGES}),
        (Lora(rank=2, trainable=1), {"stages.third.0.weight"}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_only_what_a_strategy_names_changes(pictures, strategy, changed):
    assert trained(strategy, pictures)[1] == changed


def test_an_anchor_keeps_weights_near_the_pretrained_ones(pictures):
    start = trained(AnchoredTuning(), pictures, trunk_lr=1e-12)[0]

    def distance(anchor):
        weights = trained(AnchoredTuning(anchor=anchor), pictures)[0]
        return sum(float((weights[name] - start[name]).norm()) for name in weights if name.endswith("0.weight"))

    loose, tight = distance(0.0), distance(30.0)
    assert 0.0 < tight < loose / 2


def test_an_interrupted_training_with_updates_of_low_rank_resumes_to_the_same_bit(pictures, tmp_path):
    options = {"rank": 2, "ema": 0.5}
    expected, _ = trained(Lora(), pictures, **options)
    with pytest.raises(Stopped):
        trained(Lora(), pictures, tmp_path, Stops(3), **options)
    assert same(trained(Lora(), pictures, tmp_path, **options)[0], expected)


@pytest.fixture
def prepared():
    """A small network with updates of low rank that are not zero, as after training."""
    trunk = small_trunk()
    strategy = Lora(rank=2)
    preparation = Preparation(
        Network(torch.nn.Identity(), trunk), strategy.phases(trunk.names, STATISTICS), strategy.prepare, 0
    )
    with torch.no_grad():
        for name in preparation.changing:
            dict(trunk.named_parameters())[name].normal_(0.0, 0.3)
    return trunk, preparation


def test_merged_and_unmerged_outputs_are_equal(prepared):
    trunk, preparation = prepared
    images = torch.randint(256, (5, 8, 8, 3), dtype=torch.uint8)
    with torch.inference_mode():
        unmerged, original = trunk(images), small_trunk()(images)
    assert preparation.finish() == trunk.names
    with torch.inference_mode():
        merged = trunk(images)
    assert torch.allclose(merged, unmerged, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(merged, original, atol=1e-2)


def test_the_exported_graph_has_the_operators_of_the_original(prepared):
    trunk, preparation = prepared
    preparation.finish()
    ours, originals = (operators(each) for each in (trunk, small_trunk()))
    assert ours == originals
    assert ours["Conv"] == 2


def operators(trunk):
    graph = trace.stage_graph(trunk)
    return Counter(node.op_type for node in onnx.load(graph).graph.node)


def test_weights_smaller_than_their_update_get_none():
    trunk, strategy = small_trunk(), Lora(rank=8)
    strategy.prepare(dict(trunk.stages.items()))
    assert [name for name, _ in trunk.named_parameters() if "lora_a" in name] == [
        "stages.third.1.parametrizations.weight.0.lora_a"
    ]


def test_parameters_that_a_network_lacks_are_named():
    trunk = small_trunk()
    phases = Lora().phases(trunk.names, STATISTICS)
    with pytest.raises(UsageError, match=r"phase 2: no parameter of first, second, third matches '\*.lora_\*'; choose"):
        prepare_stages(Network(torch.nn.Identity(), trunk), phases, lambda _stages: None, 0)
