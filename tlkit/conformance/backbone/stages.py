"""Checks of the stages of a backbone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tlkit.conformance.backbone.subject import BackboneSubject, different_tensors
from tlkit.conformance.subject import expect
from tlkit.model import trunk as trunks
from tlkit.util.text import listed

EVAL = "return each stage after `.eval()`"


def builds(subject: BackboneSubject) -> None:
    """`stages(pretrained=False)` returns an ordered mapping from names to modules."""
    stages = subject.stages
    do = "return a dict from names to `nn.Module`s, shallow to deep"
    expect(isinstance(stages, Mapping) and len(stages) > 0, f"`stages` returned {type(stages).__name__}, empty", do=do)
    others = [f"{name!r} is {type(it).__name__}" for name, it in stages.items() if not isinstance(it, nn.Module)]
    expect(not others, f"not all stages are modules: {listed(others)}", do=do)


def stage_names(subject: BackboneSubject) -> None:
    """Names are of the form `[a-z0-9_]+`: they become part of the names of tensors and outputs."""
    bad = trunks.bad_names(map(str, subject.stages))
    expect(not bad, f"no stage can be named {listed([repr(name) for name in bad])}", do="use names such as 'stage1'")
    _ = subject.built


def same_every_time(subject: BackboneSubject) -> None:
    """Two builds have the same stages in the same order, of the same tensors."""
    first, second = subject.random_trunk(), subject.random_trunk()
    do = "build the same structure every time: a bundle is opened by building it again"
    expect(first.names == second.names, f"one build has the stages {first.names}, the next has {second.names}", do=do)
    different = different_tensors(first, second)
    expect(not different, f"tensors differ from build to build: {listed(different)}", do=do)


def in_eval_mode(subject: BackboneSubject) -> None:
    """Every module of every stage is in eval mode when it is returned."""
    stages = subject.component.stages(pretrained=False)
    training = [
        f"{stage}.{name}".rstrip(".")
        for stage, module in stages.items()
        for name, inner in module.named_modules()
        if inner.training
    ]
    expect(not training, f"modules are in training mode: {listed(training)}", do=EVAL)


def in_single_precision(subject: BackboneSubject) -> None:
    """Weights and buffers are float32; export converts to lower precisions."""
    state = subject.random_trunk().state_dict()
    other = [f"{name} is {t.dtype}" for name, t in state.items() if t.is_floating_point() and t.dtype != torch.float32]
    expect(not other, f"not all weights are float32: {listed(other)}", do="return each stage after `.float()`")


def can_be_trained(subject: BackboneSubject) -> None:
    """Every parameter requires a gradient: freezing is up to the strategy."""
    fixed = [name for name, parameter in subject.random_trunk().named_parameters() if not parameter.requires_grad]
    expect(not fixed, f"parameters are frozen: {listed(fixed)}", do="leave freezing to tlkit; make constants buffers")


def tensors_are_registered(subject: BackboneSubject) -> None:
    """Every tensor that a module holds is a parameter or a buffer, so that it is stored and moved with the module."""
    loose = [
        f"{name}.{attribute}"
        for name, module in subject.random_trunk().stages.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    do = "register it: self.register_buffer(name, tensor), or wrap it in nn.Parameter"
    expect(not loose, f"tensors are plain attributes: {listed(loose)}", do=do)


def share_no_tensors(subject: BackboneSubject) -> None:
    """No two stages hold the same parameter or buffer: freezing one would not freeze it in the other."""
    owners: dict[int, str] = {}
    shared = []
    for stage, module in subject.random_trunk().stages.items():
        for name, place in _places(module):
            owner = owners.setdefault(place, stage)
            if owner != stage:
                shared.append(f"{stage}.{name} is also in {owner}")
    expect(not shared, f"stages share tensors: {listed(shared)}", do="give each stage tensors of its own")


def builds_share_no_tensors(subject: BackboneSubject) -> None:
    """Two builds hold no tensor in common: training one must not change the other."""
    shared = _shared(subject.random_trunk(), subject.random_trunk())
    expect(not shared, f"two builds share tensors: {listed(shared)}", do="build every module again in each call")


def can_be_copied(subject: BackboneSubject) -> None:
    """`copy.deepcopy` gives an equal trunk that shares no tensor: the best epoch is kept as a copy."""
    copied = copy.deepcopy(subject.trunk)
    shared = _shared(subject.trunk, copied)
    do = "keep to plain modules, parameters and buffers; hold no closures over tensors"
    expect(not shared, f"a deep copy shares tensors: {listed(shared)}", do=do)
    same = np.array_equal(subject.run(copied)[-1], subject.features[-1])
    expect(same, "a deep copy computes something else", do=do)


def _shared(one: nn.Module, other: nn.Module) -> list[str]:
    """Return the names of the tensors that both hold."""
    places = {place for _, place in _places(one)}
    return [name for name, place in _places(other) if place in places]


def _places(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield name and memory address of each parameter and buffer that is not empty."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.numel():
            yield name, tensor.untyped_storage().data_ptr()
