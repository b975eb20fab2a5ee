"""Checks that a backbone can be trained, as a whole and in part."""

from __future__ import annotations

import torch
from torch import Tensor

from tlkit.conformance.backbone.subject import BackboneSubject
from tlkit.conformance.subject import expect, expect_none
from tlkit.model.trunk import Trunk
from tlkit.util.text import listed

LEARNING_RATE = 1e-3
TINY = 1e-20  # below the gradients of a deep network with small random weights


def gradient_reaches_every_parameter(subject: BackboneSubject) -> None:
    """Every parameter gets a gradient from the deepest features."""
    trunk = subject.fresh()
    _loss(trunk, subject.images[:2]).backward()  # type: ignore[no-untyped-call]
    idle = [name for name, p in trunk.named_parameters() if p.grad is None or not p.grad.any()]
    do = "leave out of the stages what they don't use, and detach nothing"
    expect_none(idle, "parameters without a gradient", do=do)


def trains(subject: BackboneSubject) -> None:
    """A training step changes every stage that has parameters, and leaves all values finite."""
    trunk = subject.fresh().train()
    before = _state(trunk)
    _step(trunk, subject.images[:3])
    unchanged = []
    for stage, module in trunk.stages.items():
        parameters = [(f"stages.{stage}.{name}", parameter) for name, parameter in module.named_parameters()]
        if parameters and all(torch.equal(parameter, before[name]) for name, parameter in parameters):
            unchanged.append(stage)
    expect(not unchanged, f"a training step does not change {listed(unchanged)}", do="detach and freeze nothing")
    odd = [name for name, tensor in trunk.state_dict().items() if not torch.isfinite(tensor.float()).all()]
    expect(not odd, f"a training step leaves {listed(odd)} not finite", do="check the stages in training mode")


def frozen_stages_stay(subject: BackboneSubject) -> None:
    """While deeper stages are trained, frozen stages in eval mode stay bit-identical, buffers included."""
    trunk = subject.fresh()
    names = trunk.names[: (len(trunk.names) + 1) // 2]
    for name, stage in trunk.stages.items():
        stage.train(name not in names).requires_grad_(name not in names)
    before = _state(trunk)
    _step(trunk, subject.images[:3])
    prefixes = tuple(f"stages.{name}." for name in names)
    changed = [
        name for name, t in _state(trunk).items() if name.startswith(prefixes) and not torch.equal(t, before[name])
    ]
    expect_none(changed, "training changed frozen tensors", do="update statistics in training mode only")


def _loss(trunk: Trunk, images: Tensor) -> Tensor:
    """Return a scalar in which every feature has a different weight."""
    features: Tensor = trunk(images)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    return (features * weights).mean() + features.square().mean()


def _step(trunk: Trunk, images: Tensor) -> None:
    """Take one step on the trainable parameters, as large for a small gradient as for a large one."""
    loss = _loss(trunk, images)
    learning = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    if learning:
        loss.backward()  # type: ignore[no-untyped-call]
        torch.optim.Adam(learning, lr=LEARNING_RATE, eps=TINY).step()


def _state(trunk: Trunk) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trunk.state_dict().items()}
