"""A network is split after its frozen stages, and a single changed bit in a frozen tensor is noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parametrize

from tests.kit.course import STAGES, Given
from tests.kit.tiny import Line, Seeded, Tiny
from tlkit.errors import GateError, UsageError
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Phase
from tlkit.training.freezing import Network, Preparation, prepare_stages, provenance, tensor_hashes


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
        phase = Phase(1, 1, trunk_lr=1, trainable=trainable)
        frozen, model, in_eval, _ = network.split([phase])
        model.train()
        assert all(isinstance(module, torch.nn.BatchNorm2d) for module in in_eval)
        modes = [stage.training for stage in network.trunk.stages.values()]
        assert modes == [False] * (3 - trainable) + [True] * trainable
        needs = [all(p.requires_grad for p in stage.parameters()) for stage in network.trunk.stages.values()]
        assert needs == modes
        optimizer = network.optimizer(phase)
        optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert not optimized & {id(parameter) for parameter in frozen.parameters()}
        assert optimized == {id(parameter) for parameter in model.parameters()}

    def test_both_parts_together_are_the_network(self, network, trunk):
        images = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8)
        with torch.inference_mode():
            expected = network.head.eval()(trunk(images))
            for trainable in range(4):
                frozen, model, *_ = network.split([Phase(1, 1, trainable=trainable)])
                assert torch.allclose(model.eval()(frozen(images)), expected, atol=1e-5)

    def test_named_stages_train_and_those_between_are_frozen(self, network):
        _, model, in_eval, first = network.split([Phase(1, 1, trunk_lr=1, trainable=("second",), batchnorm="update")])
        assert first == 1
        model.train()
        for module in in_eval:
            module.eval()
        assert [stage.training for stage in network.trunk.stages.values()] == [False, True, False]
        assert [any(p.requires_grad for p in stage.parameters()) for stage in network.trunk.stages.values()] == [
            False,
            True,
            False,
        ]

    def test_learning_rates_of_named_stages_decay_by_their_depth(self, network):
        phase = Phase(1, 0.1, trunk_lr=0.01, trainable=("first", "third"), lr_decay=0.5, anchor=0.1)
        groups = network.parameter_groups(phase)
        assert [group["lr"] for group in groups] == [0.1, 0.01, 0.0025]
        assert [group.get("weight_decay") for group in groups] == [None, 0.0, 0.0]
        assert groups[2]["names"] == [f"stages.first.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")]

    @pytest.mark.parametrize(
        ("globs", "names"),
        [
            (("*bias",), ["0.bias", "1.bias"]),
            (("1.*",), ["1.weight", "1.bias"]),
            (("*Norm*.weight",), ["1.weight"]),
            (("0.bias", "Conv2d.weight"), ["0.weight", "0.bias"]),
        ],
    )
    def test_globs_choose_parameters_by_name_or_by_the_class_of_their_module(self, network, globs, names):
        phase = Phase(1, 1, trunk_lr=1, trainable=2, parameters=globs)
        chosen = {stage: [f"stages.{stage}.{name}" for name in names] for stage in ("second", "third")}
        assert {stage: list(found) for stage, found in network.parameters(phase).items()} == chosen
        network.split([phase])
        learning = [name for name, p in network.trunk.named_parameters() if p.requires_grad]
        assert learning == [name for stage in chosen.values() for name in stage]

    def test_a_stage_without_chosen_parameters_is_frozen(self, network):
        network.trunk.stages["second"].register_parameter("adapter", torch.nn.Parameter(torch.zeros(1)))
        phase = Phase(1, 1, trunk_lr=1, trainable=3, parameters=("adapter",))
        assert network.learning(phase) == ["second"]
        assert network.split([phase])[-1] == 1
        prepare_stages(network, [phase], Given().prepare, 0)

    def test_globs_that_match_nothing_are_refused_with_the_names_there_are(self, network):
        phase = Phase(1, 1, trunk_lr=1, trainable=("second",), parameters=("*bias", "*lora*"))
        with pytest.raises(UsageError, match=r"phase 2: no parameter of second matches '\*lora\*'; choose .*second.0"):
            prepare_stages(network, [Phase(1, 1), phase], Given().prepare, 0)

    @pytest.mark.parametrize(
        ("phases", "statistics"),
        [
            ([Phase(1, 1, trainable=1)], []),
            ([Phase(1, 1, trainable=1, batchnorm="update")], ["third"]),
            ([Phase(1, 1, trainable=2, reinit=1)], ["third"]),
            ([Phase(1, 1, trainable=1, reinit=1), Phase(1, 1, trainable=3)], ["third"]),
            ([Phase(1, 1, trainable=1, parameters=("1.bias",), batchnorm="update")], ["third"]),
        ],
    )
    def test_only_what_phases_name_may_change(self, network, phases, statistics):
        changing = network.changing(phases)
        assert {"head.weight", "head.bias", "stages.third.1.bias"} <= set(changing)
        kept = [f"stages.{stage}.1.running_mean" for stage in statistics]
        assert [name for name in changing if "running_mean" in name] == kept

    def test_reinitialized_weights_follow_from_the_seed(self):
        weights = []
        for number, seed in enumerate((0, 0, 2)):
            torch.manual_seed(number)  # what happened before plays no part
            trunk = trunks.build(Seeded())
            before = tensor_hashes(trunk)
            Network(Line().module(12, 3), trunk).reinitialize(Seeded(), 2, seed)
            after = tensor_hashes(trunk)
            assert {name.split(".")[1] for name in before if before[name] != after[name]} == {"second", "third"}
            weights.append(after)
        assert weights[0] == weights[1] != weights[2]


PLAIN = Phase(1, 1, trunk_lr=1, trainable=2)
SHIFT = replace(PLAIN, parameters=("*.shift",))


class Shift(torch.nn.Module):
    def __init__(self, like):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros_like(like))

    def forward(self, original):
        return original + self.shift


def shifted(stages):
    """Parametrize the biases of two stages, as an adapter does."""
    for name in ("second", "third"):
        parametrize.register_parametrization(stages[name][0], "bias", Shift(stages[name][0].bias))
    return lambda: unshifted(stages, merged=True)


def unshifted(stages, *, merged):
    for name in ("second", "third"):
        parametrize.remove_parametrizations(stages[name][0], "bias", leave_parametrized=merged)


def step(network, *names):
    """Change tensors, as training would."""
    with torch.no_grad():
        for name in names:
            network.tensors()[name].add_(1)


class TestPreparation:
    @pytest.mark.parametrize(
        ("phase", "name"),
        [
            (PLAIN, "stages.first.0.bias"),
            (PLAIN, "stages.second.1.running_var"),
            (replace(PLAIN, parameters=("*bias",)), "stages.third.0.weight"),
            (replace(PLAIN, trainable=("first",), batchnorm="update"), "stages.second.1.running_mean"),
        ],
    )
    def test_a_single_bit_of_a_frozen_tensor_is_noticed(self, network, phase, name):
        preparation = Preparation(network, [phase], Given().prepare, 0)
        assert preparation.finish() == ()
        with torch.no_grad():
            tensor = network.tensors()[name]
            tensor[(0,) * tensor.ndim].nextafter_(torch.tensor(9.0))
        with pytest.raises(GateError, match=f"frozen tensors changed during training: {name};"):
            preparation.finish()

    def test_stages_with_trained_tensors_are_named(self, network):
        preparation = Preparation(network, [PLAIN], Given().prepare, 0)
        step(network, "stages.third.0.bias")
        assert preparation.finish() == ("third",)

    def test_prepared_stages_are_merged(self, network):
        preparation = Preparation(network, [SHIFT], shifted, 0)
        names = [f"stages.{stage}.0.parametrizations.bias.0.shift" for stage in ("second", "third")]
        assert [name for name in preparation.changing if "head" not in name] == names
        step(network, names[1])
        before = network.tensors()["stages.third.0.parametrizations.bias.original"].detach().clone()
        assert preparation.finish() == ("third",)
        assert torch.equal(network.tensors()["stages.third.0.bias"], before + 1)

    def test_a_frozen_original_below_a_parametrization_is_proven_too(self, network):
        preparation = Preparation(network, [SHIFT], shifted, 0)
        step(network, "stages.third.0.parametrizations.bias.original")
        with pytest.raises(GateError, match=r"training: stages.third.0.parametrizations.bias.original;"):
            preparation.finish()

    @pytest.mark.parametrize(
        ("merge", "problem"),
        [
            (lambda _stages: None, "the merged stages have another structure"),
            (lambda stages: unshifted(stages, merged=False), "merging changed the features by"),
        ],
    )
    def test_stages_that_are_not_merged_are_refused(self, network, merge, problem):
        def prepare(stages):
            shifted(stages)
            return lambda: merge(stages)

        preparation = Preparation(network, [SHIFT], prepare, 0)
        step(network, *preparation.changing)
        with pytest.raises(GateError, match=f"{problem}.*author of the strategy"):
            preparation.finish()

    def test_prepared_stages_still_give_features(self, network):
        def prepare(stages):
            stages["third"].append(torch.nn.Flatten(0))
            return lambda: None

        with pytest.raises(
            GateError, match=r"prepared stages give features \(\d+,\) for two images.*author of the strat"
        ):
            Preparation(network, [SHIFT], prepare, 0)

    def test_stages_can_not_be_prepared_and_reinitialized(self, network):
        with pytest.raises(UsageError, match="a phase reinitializes stages that the strategy prepares"):
            Preparation(network, [replace(PLAIN, reinit=1)], shifted, 0)


def test_provenance_of_stages():
    phases = [Phase(1, 1), Phase(1, 1, trunk_lr=1, trainable=1, reinit=1), Phase(1, 1, trunk_lr=1, trainable=2)]
    found = provenance(STAGES, phases, ("second", "third"))
    assert found == {"first": "original", "second": "fine-tuned", "third": "reinitialized"}
    assert set(provenance(STAGES, phases, ()).values()) == {"original"}
