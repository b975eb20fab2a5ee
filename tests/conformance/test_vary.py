"""Random weights that hide nothing, and the same change for the same weights whatever they are called."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.kit.tiny import Tiny
from tlkit.conformance import CheckFailed, Reference, Skipped, checks
from tlkit.conformance.backbone.vary import vary


class Branch(nn.Module):
    """A residual block as many libraries begin with it: its branch is multiplied by zero."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x):
        return x + self.norm(self.convolution(x))


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_branch_that_did_nothing_does_something(images):
    block = Branch().eval()
    with torch.no_grad():
        assert torch.equal(block(images), images)
        vary(block, lambda: block(images))
        assert not torch.allclose(block(images), images, atol=1e-3)
    assert not block.training
    assert block.norm.momentum == 0.1


def test_a_deep_network_does_not_magnify_small_differences(images):
    torch.manual_seed(0)
    layers = [[nn.Conv2d(16 if depth else 3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()] for depth in range(40)]
    deep = nn.Sequential(*(layer for block in layers for layer in block))
    vary(deep, lambda: deep(images))
    with torch.no_grad():
        exact, disturbed = deep(images), deep(images * (1 + 1e-3))
    assert (disturbed - exact).norm() < 0.02 * (exact - exact.mean(0)).norm()


def test_norms_fit_what_was_run(images):
    block = vary(Branch(), lambda: None)
    assert torch.equal(block.norm.running_mean, torch.zeros(3))
    vary(block, lambda: block(images))
    with torch.no_grad():
        mean = block.convolution(images).mean((0, 2, 3))
    assert torch.allclose(block.norm.running_mean, mean, atol=1e-5)


def test_the_same_weights_under_other_names_stay_the_same():
    first = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    second = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    second[1].load_state_dict(first["a"].state_dict())
    second[0].load_state_dict(first["b"].state_dict())
    for network in (first, second):
        vary(network, lambda: None)
    assert torch.equal(first["a"].weight, second[1].weight)
    assert torch.equal(first["b"].bias, second[0].bias)
    assert not torch.equal(first["a"].weight, first["b"].weight)


def network():
    """As a library would build it."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), Branches(), nn.Conv2d(4, 6, 3), nn.ReLU()).eval()


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x):
        return x + self.norm(x).relu()


class Taken(Tiny):
    """Stages that are taken out of a library's network."""

    def stages(self, *, pretrained):
        whole = network()
        return {"stem": whole[0], "body": whole[1], "last": whole[2:]}


class Library(Reference):
    def features(self, backbone, *, pretrained):
        return nn.Sequential(network(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def together(component, reference=Library()):  # noqa: B008 - it has no state
    dict(checks(component, reference=reference))["features-equal-the-library"]()


def test_stages_that_are_together_the_whole_network_pass():
    together(Taken())


def test_a_stage_left_out_is_found_even_where_it_begins_as_nothing():
    class Lacking(Taken):
        def stages(self, *, pretrained):
            return {name: stage for name, stage in super().stages(pretrained=pretrained).items() if name != "body"}

    with pytest.raises(CheckFailed, match="the pooled features differ from the library's"):
        together(Lacking())


def test_another_width_is_told():
    class Short(Taken):
        def stages(self, *, pretrained):
            return dict(list(super().stages(pretrained=pretrained).items())[:2])

    with pytest.raises(CheckFailed, match=r"the library gives torch.Size\(\[5, 6\]\), the stages torch.Size\(\[5, 4\]"):
        together(Short())


def test_without_a_reference_it_is_skipped():
    with pytest.raises(Skipped, match="its reference has no `features`"):
        together(Tiny(), None)
