"""Gradients that are computed in another way than PyTorch's are the same."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import nn

from tlkit.model.trunk import MeanPool
from tlkit.training import gradients
from tlkit.training.gradients import fast_gradients

CPU, POOL = torch.device("cpu"), nn.Identity()
X86 = platform.machine() in ("x86_64", "AMD64")


def learned(layer, given, times=1.0):
    """The output of a layer, and the gradients of its input, weight and bias."""
    layer.zero_grad()
    given = given.clone().requires_grad_()
    output = layer(given)
    (output * torch.linspace(-1, times, output.numel()).view(output.shape)).sum().backward()
    return [output.detach(), given.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@pytest.fixture
def taken(monkeypatch):
    """The widths of the kernels whose gradient was computed a few columns at a time."""
    widths, own = [], gradients._weight_gradient

    def seen(gradient, x, weight, *rest):
        widths.append(weight.shape[3])
        return own(gradient, x, weight, *rest)

    monkeypatch.setattr(gradients, "_weight_gradient", seen)
    return widths


@pytest.mark.skipif(not X86, reason="elsewhere PyTorch's own way is kept")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize(("kernel", "padding"), [(5, 2), (5, 0), (4, 1), (7, 3), ((3, 5), (1, 4)), ((1, 8), (0, 3))])
def test_a_wide_depthwise_kernel_learns_the_same(taken, kernel, padding, stride, bias):
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=bias)
    given = torch.randn(3, 6, 11, 9).contiguous(memory_format=torch.channels_last)
    expected = learned(layer, given)
    assert taken == []
    with fast_gradients(CPU, POOL):
        found = learned(layer, given)
    assert taken == [layer.weight.shape[3]]
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not X86, reason="elsewhere PyTorch's own way is kept")
@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(5, 2), (7, 3), (7, 6), ((1, 8), (0, 7))])
def test_maps_narrower_than_the_kernel_learn_the_same(taken, kernel, padding, side):
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, kernel, 1, padding, groups=6)
    given = torch.randn(3, 6, side, side).contiguous(memory_format=torch.channels_last)
    expected = learned(layer, given)
    with fast_gradients(CPU, POOL):
        found = learned(layer, given)
    assert taken == [layer.weight.shape[3]]
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 6, 5, padding=2),
        nn.Conv2d(6, 12, 5, padding=2, groups=6),
        nn.Conv2d(6, 6, 5, padding="same", groups=6),
        nn.Conv2d(6, 6, 5, padding=4, dilation=2, groups=6),
        nn.Conv2d(6, 6, 5, padding=2, groups=6).double(),
    ],
    ids=["narrow", "whole", "doubling", "same", "dilated", "double"],
)
def test_any_other_convolution_is_left_alone(taken, layer):
    given = torch.randn(2, 6, 9, 9, dtype=layer.weight.dtype)
    expected = learned(layer, given)
    with fast_gradients(CPU, POOL):
        found = learned(layer, given)
    assert taken == []
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_what_does_not_learn_costs_nothing(taken):
    layer = nn.Conv2d(6, 6, 5, padding=2, groups=6).requires_grad_(False)
    given = torch.randn(2, 6, 9, 9, requires_grad=True)
    with fast_gradients(CPU, POOL):
        output = layer(given)
        output.sum().backward()
    assert taken == []
    assert "Depthwise" not in type(output.grad_fn).__name__


def test_on_a_gpu_nothing_is_changed():
    with fast_gradients(torch.device("cuda"), POOL):
        output = nn.Conv2d(6, 6, 5, groups=6)(torch.randn(2, 6, 9, 9))
    assert "Depthwise" not in type(output.grad_fn).__name__


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (2, 5, 3)])
def test_the_gradient_of_a_pool_has_the_channels_last(shape):
    given, seen, pool = torch.randn(shape, requires_grad=True), [], MeanPool()
    maps = given * 1
    maps.register_hook(seen.append)
    with fast_gradients(CPU, pool):
        pool(maps).sum().backward()
    assert torch.allclose(given.grad, torch.full(shape, 1 / (25 if len(shape) == 4 else 5)))
    assert len(shape) == 3 or seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not pool._forward_pre_hooks  # the network is as it was
