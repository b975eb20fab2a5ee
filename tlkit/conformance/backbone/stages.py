"""Checks of the stages of a backbone, and of the state that a bundle stores of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor, nn

from tlkit.conformance.backbone.subject import BackboneSubject
from tlkit.conformance.subject import Skipped, expect, expect_none
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import option_fields
from tlkit.plugin.options import configure, describe
from tlkit.util.text import listed


def builds(subject: BackboneSubject) -> None:
    """`stages(pretrained=False)` returns an ordered mapping from names to modules."""
    stages = subject.stages
    do = "return a dict from names to `nn.Module`s, shallow to deep"
    expect(isinstance(stages, Mapping) and len(stages) > 0, f"`stages` returned {type(stages).__name__}, empty", do=do)
    others = [f"{name!r} is {type(it).__name__}" for name, it in stages.items() if not isinstance(it, nn.Module)]
    expect_none(others, "not all stages are modules", do=do)


def stage_names(subject: BackboneSubject) -> None:
    """Names are of the form `[a-z0-9_]+`: they become part of the names of tensors and outputs."""
    bad = trunks.bad_names(map(str, subject.stages))
    expect(not bad, f"no stage can be named {listed([repr(name) for name in bad])}", do="use names such as 'stage1'")
    _ = subject.built


def same_every_time(subject: BackboneSubject) -> None:
    """Two builds have the same stages in the same order, of the same tensors."""
    first, second = subject.builds
    do = "build the same structure every time: a bundle is opened by building it again"
    expect(first.names == second.names, f"one build has the stages {first.names}, the next has {second.names}", do=do)
    different = subject.different_tensors(first, second)
    expect_none(different, "tensors differ from build to build", do=do)


def local_options_keep_the_structure(subject: BackboneSubject) -> None:
    """With the defaults of `local` options, the stages have the same tensors: a bundle is opened with those."""
    options = describe(subject.component)
    defaults = {each.name: each.default for each in option_fields(subject.component)}
    local = {each.name: defaults[each.name] for each in options if each.local}
    if not local:
        raise Skipped("it has no local options")
    elsewhere = trunks.build(configure(subject.component, local), pretrained=False)
    different = subject.different_tensors(subject.builds[0], elsewhere)
    expect_none(different, "tensors differ elsewhere", do="let local options choose weights, and nothing else")


def in_eval_mode(subject: BackboneSubject) -> None:
    """Every module of every stage is in eval mode when it is returned."""
    stages = subject.stages
    training = [
        f"{stage}.{name}".rstrip(".")
        for stage, module in stages.items()
        for name, inner in module.named_modules()
        if inner.training
    ]
    expect_none(training, "modules are in training mode", do="return each stage after `.eval()`")


def in_single_precision(subject: BackboneSubject) -> None:
    """Weights and buffers are float32; export converts to lower precisions."""
    state = subject.builds[0].state_dict()
    other = [f"{name} is {t.dtype}" for name, t in state.items() if t.is_floating_point() and t.dtype != torch.float32]
    expect_none(other, "not all weights are float32", do="return each stage after `.float()`")


def can_be_trained(subject: BackboneSubject) -> None:
    """Every parameter requires a gradient: freezing is up to the strategy."""
    fixed = [name for name, parameter in subject.builds[0].named_parameters() if not parameter.requires_grad]
    expect_none(fixed, "parameters are frozen", do="leave freezing to tlkit; make constants buffers")


def tensors_are_registered(subject: BackboneSubject) -> None:
    """Every tensor that a module holds is a parameter or a buffer, so that it is stored and moved with the module."""
    loose = [
        f"{name}.{attribute}"
        for name, module in subject.builds[0].stages.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    do = "register it: self.register_buffer(name, tensor), or wrap it in nn.Parameter"
    expect_none(loose, "tensors are plain attributes", do=do)


def share_no_tensors(subject: BackboneSubject) -> None:
    """No two stages hold the same parameter or buffer: freezing one would not freeze it in the other."""
    owners: dict[int, str] = {}
    shared = []
    for stage, module in subject.builds[0].stages.items():
        for name, place in _places(module):
            owner = owners.setdefault(place, stage)
            if owner != stage:
                shared.append(f"{stage}.{name} is also in {owner}")
    expect_none(shared, "stages share tensors", do="give each stage tensors of its own")


def builds_share_no_tensors(subject: BackboneSubject) -> None:
    """Two builds hold no tensor in common: training one must not change the other."""
    shared = _shared(*subject.builds)
    expect_none(shared, "two builds share tensors", do="build every module again in each call")


def can_be_copied(subject: BackboneSubject) -> None:
    """`copy.deepcopy` gives an equal trunk that shares no tensor: the best epoch is kept as a copy."""
    copied = copy.deepcopy(subject.trunk)
    shared = _shared(subject.trunk, copied)
    do = "keep to plain modules, parameters and buffers; hold no closures over tensors"
    expect_none(shared, "a deep copy shares tensors", do=do)
    same = np.array_equal(subject.run(copied)[-1], subject.features[-1])
    expect(same, "a deep copy computes something else", do=do)


def state_is_finite(subject: BackboneSubject) -> None:
    """Every stored value is finite: a bundle that holds anything else is refused."""
    state = subject.built.state_dict()
    odd = [name for name, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    do = "register constants such as masks with `persistent=False`, and build them again from the structure"
    expect_none(odd, "values are not finite", do=do)


def state_survives_safetensors(subject: BackboneSubject) -> None:
    """The state comes back from a safetensors file to the bit."""
    before = trunks.tensors(subject.built)
    after = load(save(before))
    changed = [name for name in before if not _identical(before[name], after[name])]
    expect_none(changed, "tensors change when they are stored", do="use plain tensors of common types")


def state_is_complete(subject: BackboneSubject) -> None:
    """Another build that is given the state computes the same: nothing that was learned is outside it."""
    other = copy.deepcopy(subject.builds[1])
    trunks.load_tensors(other, trunks.tensors(subject.trunk), what="trunk")
    same = np.array_equal(subject.run(other)[-1], subject.features[-1])
    do = "register every weight as a parameter or a persistent buffer, and draw nothing at random besides"
    expect(same, "two builds with the same state compute different features", do=do)


def fingerprint_is_stable(subject: BackboneSubject) -> None:
    """Two builds of the same weights have the same fingerprint, or no graph and no feature would be used again."""
    other = copy.deepcopy(subject.builds[1])
    trunks.load_tensors(other, trunks.tensors(subject.built), what="trunk")
    shown = re.search(r"at 0x[0-9a-f]+", repr(other))
    right = shown is None and trunks.fingerprint(other) == trunks.fingerprint(subject.built)
    wrong = "the structure differs from build to build as it is shown" + (f": ...{shown.group()}..." if shown else "")
    expect(right, wrong, do="keep what changes from process to process out of `extra_repr`")


def random_weights_are_random(subject: BackboneSubject) -> None:
    """`stages(pretrained=False)` gives other weights each time: none were loaded, and none are constant."""
    first, second = (dict(build.named_parameters()) for build in subject.builds)
    pairs = [(one, second[name]) for name, one in first.items() if one.ndim >= 2]
    if not pairs:
        raise Skipped("it has no matrices and no filters")
    differing = sum(int((one != other).sum()) for one, other in pairs)
    share = differing / sum(one.numel() for one, _ in pairs)
    do = "with `pretrained=False`, leave the weights as PyTorch initializes them"
    expect(share > 0.5, f"only {share:.0%} of the weights of two builds differ", do=do)


def _shared(one: nn.Module, other: nn.Module) -> list[str]:
    """Return the names of the tensors that both hold."""
    places = {place for _, place in _places(one)}
    return [name for name, place in _places(other) if place in places]


def _places(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield name and memory address of each parameter and buffer that is not empty."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.numel():
            yield name, tensor.untyped_storage().data_ptr()


def _identical(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
