"""Take a timm model apart into stages, and run it to show that they are complete.

No code of timm is repeated here. The stem is the model's own `forward_features` with everything deeper taken out of it
(embedding, positions and class tokens are in there); what the head does before the classifier is the model's own
`forward_head`, with everything else taken out.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from tlkit.plugin.support import MeanPool, UsageError
from tlkit_timm.families import FAMILIES, Family
from tlkit_timm.parts import ChannelsLastPool, Given, Nothing, Part, TokenPool, Whole

TOLERANCE = 1e-5  # relative: both run the same modules on the same numbers

Handed = Mapping[nn.Module, Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Staged:
    """Stages of a model, and the model as timm runs it up to the same point; both hold the same tensors."""

    stages: dict[str, nn.Module]
    whole: nn.Module


def take_apart(model: Any, size: int) -> Staged:
    """Return the stages of a model in eval mode, for images of `size` pixels. Raises UsageError if it has none.

    They return the output of `forward_features` if `pooling` turns that into the classifier's input. If the head does
    more than that, it is part of them, and they return the classifier's input, `(N, width)`.
    """
    family = FAMILIES.get(type(model).__name__)
    if family is None:
        _refuse(model, f"tlkit-timm doesn't know how to take a {type(model).__name__} apart")
    body, back = _body(model, family), [model.get_submodule(path) for path in family.back]
    blocks = [block for stage in body for block in stage]
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    deepest, handed = _run(model, blocks, image)
    features = model.forward_head(deepest, pre_logits=True)

    stem, head = _stem(model, family, [*blocks, *back]), _head(model, family, [*blocks, *back])
    pool = pooling(model) or MeanPool()
    headed = _has_weights(head) or not _same(pool(deepest), features)
    tail = [module for module in back if not isinstance(module, nn.Identity)] + [head] * headed
    stages = _named(stem, [_join([_give(block, handed) for block in stage]) for stage in body], tail)
    _check(model, stages, pool, image, features)
    return Staged(stages, Whole(model, headed=headed))


def pooling(model: Any) -> nn.Module | None:
    """Return the pooling of any stage's output to features: that of the model's own head, if it has no weights."""
    prefix = getattr(model, "num_prefix_tokens", None)
    if prefix is not None:
        return TokenPool(prefix, first=model.global_pool == "token")
    return ChannelsLastPool() if getattr(model, "output_fmt", None) == "NHWC" else None


def classifier(model: Any) -> nn.Module | None:
    """Return the layer from features to logits; None if there is none, or more than one."""
    found = model.get_classifier()
    return found if isinstance(found, nn.Module) and _has_weights(found) else None


def _body(model: Any, family: Family) -> list[list[nn.Module]]:
    """Return the modules of each stage. Modules without weights (activation, pooling) belong to the one before."""
    if not isinstance(family.body, str):
        return [[model.get_submodule(path) for path in paths] for paths in family.body]
    stages: list[list[nn.Module]] = []
    for child in model.get_submodule(family.body).children():
        if stages and not _has_weights(child):
            stages[-1].append(child)
        else:
            stages.append([child])
    return stages


def _run(model: Any, blocks: Iterable[nn.Module], image: Tensor) -> tuple[Tensor, Handed]:
    """Return the deepest map of an image, and the tensors that each block gets beside its input."""
    handed: dict[nn.Module, dict[str, Tensor]] = {}

    def note(block: nn.Module, positional: Sequence[object], named: Mapping[str, object]) -> None:
        handed[block] = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        if len(positional) > 1:
            _refuse(model, "its stages hand more than one thing to each other")
        if learned := [name for name, tensor in handed[block].items() if tensor.requires_grad]:
            _refuse(model, f"its stages have weights in common ({learned[0]})")

    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        with torch.enable_grad():  # distinguishes learned tensors from constants
            deepest: Tensor = model.forward_features(image)
    except AssertionError as error:  # how timm says that a model is made for images of another size
        _refuse(model, f"it takes no images of {image.shape[-1]} x {image.shape[-1]} pixels ({error})")
    finally:
        for hook in hooks:
            hook.remove()
    return deepest, handed


def _stem(model: nn.Module, family: Family, rest: Collection[nn.Module]) -> nn.Module:
    """Return the modules that run before the stages: timm registers them before them."""
    names = [name for name, _ in model.named_children()]
    after = [model.get_submodule(name) for name in names[names.index(family.top) + 1 :]]
    return Part(_without(model, [*rest, *after]), "forward_features")


def _head(model: Any, family: Family, rest: Collection[nn.Module]) -> nn.Module:
    """Return the modules that run after the stages, up to the classifier."""
    names = [name for name, _ in model.named_children()]
    before = [model.get_submodule(name) for name in names[: names.index(family.top) + 1]]
    found = model.get_classifier()
    head = _without(model, [*rest, *before, *(found if isinstance(found, tuple) else [found])])
    for name, _ in list(head.named_parameters(recurse=False)):  # positions and class tokens are the stem's
        setattr(head, name, None)
    return Part(head, "forward_head", pre_logits=True)


def _without(model: nn.Module, removed: Collection[nn.Module]) -> nn.Module:
    """Return a copy of a model that shares its tensors, with `Nothing` in place of the removed modules."""
    # deepcopy takes objects from its memo instead of copying them.
    memo: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    memo |= {id(module): Nothing() for module in removed}
    return copy.deepcopy(model, memo)


def _give(block: nn.Module, handed: Handed) -> nn.Module:
    return Given(block, handed[block]) if handed.get(block) else block


def _join(modules: Sequence[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _named(stem: nn.Module, body: Sequence[nn.Module], tail: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Return `stem`, `stage1` and so on. The tail is a stage of its own, `last`, if it has more weights than a norm."""
    stages = {"stem": stem} if _has_weights(stem) else {}
    stages |= {f"stage{number}": stage for number, stage in enumerate(body, start=1)}
    if any(parameter.ndim > 1 for module in tail for parameter in module.parameters()):
        stages["last"] = _join(tail)
    elif tail:
        deepest = f"stage{len(body)}"
        stages[deepest] = nn.Sequential(stages[deepest], *tail)
    return {name: stage.eval() for name, stage in stages.items()}


def _check(model: Any, stages: Mapping[str, nn.Module], pool: nn.Module, image: Tensor, features: Tensor) -> None:
    """Refuse stages that don't compute the features of an image: a family's paths may not fit all of its members."""
    x = image
    for name, stage in stages.items():
        x = stage(x)
        if pool(x).ndim != 2:
            _refuse(model, f"its {name} gives {tuple(x.shape)[1:]} for an image, which is neither a map nor tokens")
    if not _same(pool(x), features):
        _refuse(model, "its stages, chained, don't give what timm computes")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE * other.abs().max())


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _refuse(model: Any, why: str) -> NoReturn:
    name = model.pretrained_cfg["architecture"]
    raise UsageError(f"backbone 'timm/{name}' has no stages: {why}", do="choose another: tlkit plugins")
