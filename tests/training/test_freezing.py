"""A network is split after its frozen stages, and a single changed bit in them is noticed."""

from __future__ import annotations

import pytest
import torch

from tests.kit.course import STAGES
from tests.kit.tiny import Line, Seeded, Tiny
from tlkit.errors import GateError
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Phase
from tlkit.training.freezing import Network, changed_stages, check_frozen, provenance, stage_hashes


@pytest.fixture
def trunk():
    return trunks.build(Tiny())


@pytest.fixture
def network(trunk):
    return Network(Line().module(12, 3), trunk)


class TestNetwork:
    def test_learning_rates_decay_from_stage_to_stage(self, network):
        groups = network.parameter_groups(Phase(1, 0.1, trunk_lr=0.01, trainable=3, lr_decay=0.5))
        assert [group["lr"] for group in groups] == [0.1, 0.01, 0.005, 0.0025]
        owners = [network.head, *[network.trunk.stages[name] for name in reversed(STAGES)]]
        for group, owner in zip(groups, owners, strict=True):
            assert {id(p) for p in group["params"]} == {id(p) for p in owner.parameters()}

    @pytest.mark.parametrize("trainable", [0, 1, 2, 3])
    def test_frozen_stages_have_no_gradients_statistics_or_place_in_the_optimizer(self, network, trainable):
        frozen, model = network.split(trainable)
        model.train()
        modes = [stage.training for stage in network.stages]
        assert modes == [False] * (3 - trainable) + [True] * trainable
        needs = [all(p.requires_grad for p in stage.parameters()) for stage in network.stages]
        assert needs == modes
        optimizer = network.optimizer(Phase(1, 1, trunk_lr=1, trainable=trainable))
        optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert not optimized & {id(parameter) for parameter in frozen.parameters()}
        assert optimized == {id(parameter) for parameter in model.parameters()}

    def test_both_parts_together_are_the_network(self, network, trunk):
        images = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8)
        with torch.inference_mode():
            expected = network.head.eval()(trunk(images))
            for trainable in range(4):
                frozen, model = network.split(trainable)
                assert torch.allclose(model.eval()(frozen(images)), expected, atol=1e-5)

    def test_reinitialized_weights_follow_from_the_seed(self):
        weights = []
        for number, seed in enumerate((0, 0, 2)):
            torch.manual_seed(number)  # what happened before plays no part
            trunk = trunks.build(Seeded())
            before = stage_hashes(trunk)
            Network(Line().module(12, 3), trunk).reinitialize(Seeded(), 2, seed)
            assert changed_stages(trunk, before) == ("second", "third")
            weights.append(stage_hashes(trunk))
        assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("name", ["stages.first.0.bias", "stages.first.1.running_var"])
def test_a_single_bit_is_noticed(trunk, name):
    before = stage_hashes(trunk)
    assert check_frozen(trunk, before, 0) == ()
    with torch.no_grad():
        trunk.state_dict()[name][0].nextafter_(torch.tensor(9.0))
    assert check_frozen(trunk, before, 3) == ("first",)
    with pytest.raises(GateError, match="frozen stages changed during training: first"):
        check_frozen(trunk, before, 2)


def test_provenance_of_stages():
    phases = [Phase(1, 1), Phase(1, 1, trunk_lr=1, trainable=1, reinit=1), Phase(1, 1, trunk_lr=1, trainable=2)]
    found = provenance(STAGES, phases, ("second", "third"))
    assert found == {"first": "original", "second": "fine-tuned", "third": "reinitialized"}
    assert set(provenance(STAGES, phases, ()).values()) == {"original"}
