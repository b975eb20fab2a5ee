"""Running statistics of batch norms adapt while training, and the modules are the same afterwards."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.kit.course import course
from tests.kit.tiny import Tiny
from tlkit.model import trunk as trunks
from tlkit.model.batchnorm import pretraining_statistics
from tlkit.plugin.contract import Phase
from tlkit.training.batchnorm import MOMENTUM, training_batch_norms


def test_statistics_adapt_inside_and_modules_are_restored_afterwards():
    stages = nn.ModuleList([nn.BatchNorm2d(3, momentum=0.01), nn.BatchNorm2d(3, momentum=0.3)])
    before = repr(stages)
    with training_batch_norms(stages, shared=False):
        assert [stage.momentum for stage in stages] == [MOMENTUM, 0.3]
    assert repr(stages) == before


def test_the_trained_trunk_has_the_structure_of_the_original(pictures):
    """Otherwise `export` would trace it a second time."""
    trunk = trunks.build(Tiny())
    phase = Phase(1, 0.05, trunk_lr=0.02, trainable=3, batch_size=8, batchnorm="update")
    weights, _ = course(pictures, phases=(phase,))
    trunk.load_state_dict({name: value for name, value in weights.items() if not name.startswith("head.")})
    again = trunks.build(Tiny())
    again.load_state_dict(trunk.state_dict())
    assert trunks.fingerprint(trunk) == trunks.fingerprint(again)


def test_the_statistics_of_the_pretraining_are_those_of_the_output():
    """In eval mode, inputs with the running mean and variance give the mean and variance that are stated."""
    trunk, random = trunks.build(Tiny()), np.random.default_rng(0)
    for norm in (stage[1] for stage in trunk.stages.values()):
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            tensor.copy_(torch.from_numpy(random.normal(size=len(tensor))))
        norm.running_var.copy_(torch.from_numpy(random.uniform(0.1, 2.0, len(norm.running_var))))
    found = pretraining_statistics(trunk)
    assert [each.stage for each in found] == list(trunk.names)
    for each, norm in zip(found, (stage[1] for stage in trunk.stages.values()), strict=True):
        ends = torch.stack([norm.running_mean - norm.running_var.sqrt(), norm.running_mean + norm.running_var.sqrt()])
        with torch.no_grad():
            output = norm(ends[:, :, None, None]).double().numpy()
        assert np.allclose(output.mean((0, 2, 3)), each.bias, atol=1e-5)
        assert np.allclose(output.var((0, 2, 3)), each.share * each.weight**2, rtol=1e-4, atol=1e-6)
