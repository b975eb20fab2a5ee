"""A trunk and a head that train together: what a phase updates, and the proof that everything else stays unchanged."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tlkit.errors import GateError, UsageError
from tlkit.model.batchnorm import batch_norms
from tlkit.model.bundle import FINE_TUNED, ORIGINAL, REINITIALIZED
from tlkit.model.trunk import Trunk, hash_tensors
from tlkit.plugin.contract import Backbone, Phase
from tlkit.plugin.phases import trainable_stages
from tlkit.util.text import listed

WEIGHT_DECAY = 1e-2  # AdamW's own default (Loshchilov and Hutter 2019)
SGD_WEIGHT_DECAY, MOMENTUM = 1e-4, 0.9  # as residual networks are trained (He et al. 2016)
MERGED = 1e-4  # error of merged stages, relative to the largest feature

Tensors = dict[str, Tensor]
Prepare = Callable[[Mapping[str, nn.Module]], Callable[[], None] | None]


class Network:
    """A head, and where stages train the trunk below it; the modules are shared with the caller, changed in place."""

    def __init__(self, head: nn.Module, trunk: Trunk | None = None, device: torch.device | None = None) -> None:
        self.head = head.to(device or "cpu")
        if trunk is not None:
            trunk.to(device or "cpu").to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.trunk = trunk

    def tensors(self) -> Tensors:
        """Return every parameter and buffer; names begin with `head.`, `stages.<stage>.` or `pool.`."""
        named = {f"head.{name}": tensor for name, tensor in _tensors(self.head)}
        return named if self.trunk is None else named | dict(_tensors(self.trunk))

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Set parameters and buffers, by the names that `tensors` gives them."""
        own = self.tensors()
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)

    def parameters(self, phase: Phase) -> dict[str, dict[str, nn.Parameter]]:
        """Return the trunk's parameters that a phase updates, by trainable stage, shallow to deep, and by name."""
        if self.trunk is None:
            return {}
        names = self.trunk.names
        return {
            stage: {
                f"{prefix}.{name}": parameter
                for prefix, module in self._modules(stage)
                for name, parameter in module.named_parameters()
                if any(_matches(module, name, glob) for glob in phase.parameters)
            }
            for stage in trainable_stages(phase, names)
        }

    def learning(self, phase: Phase) -> list[str]:
        """Return the trainable stages in which a phase changes anything, parameters or running statistics."""
        updates = phase.batchnorm == "update"
        return [
            stage
            for stage, found in self.parameters(phase).items()
            if found or (updates and batch_norms(module for _, module in self._modules(stage)))
        ]

    def changing(self, phases: Sequence[Phase]) -> list[str]:
        """Return the names of the tensors that phases may change; all others are frozen."""
        names = [f"head.{name}" for name, _ in _tensors(self.head)]
        for number, phase in enumerate(phases, start=1):
            parameters = self.parameters(phase)
            for stage in self.learning(phase):
                kept = {id(buffer) for norm in self._frozen_norms(phases[:number], stage) for buffer in norm.buffers()}
                names += parameters[stage]
                names += [
                    f"{prefix}.{name}"
                    for prefix, module in self._modules(stage)
                    for name, buffer in module.named_buffers()
                    if id(buffer) not in kept
                ]
        return list(dict.fromkeys(names))

    def split(self, phases: Sequence[Phase]) -> tuple[nn.Module, nn.Module, list[nn.Module], int]:
        """Return the network split for the last of these phases, before its first stage that learns.

        The part without gradients, from images on; the part to train, up to logits; the modules in the latter that stay
        in eval mode, which are frozen stages and batch norms; and the index of its first stage.
        """
        assert self.trunk is not None  # noqa: S101 - a head alone has no stages to split
        phase, stages, pool = phases[-1], self.trunk.stages, self.trunk.pool
        learning = self.learning(phase)
        first = min((self.trunk.names.index(name) for name in learning), default=len(stages))
        above, below = [self.trunk.normalize, *list(stages.values())[:first]], list(stages.values())[first:]
        (below or above).append(pool)
        self.trunk.requires_grad_(False)
        for found in self.parameters(phase).values():
            for parameter in found.values():
                parameter.requires_grad_(True)
        in_eval: list[nn.Module] = []
        for name in self.trunk.names[first:]:
            frozen = name not in learning
            in_eval += [each for _, each in self._modules(name)] if frozen else self._frozen_norms(phases, name)
        return nn.Sequential(*above).eval(), nn.Sequential(*below, self.head), in_eval, first

    def optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        """Return the optimizer of a phase; each of its groups records its `highest_lr`."""
        groups = [{**group, "highest_lr": group["lr"]} for group in self.parameter_groups(phase)]
        if phase.optimizer.name == "sgd":
            return eager(torch.optim.SGD)(groups, momentum=MOMENTUM, weight_decay=SGD_WEIGHT_DECAY, fused=True)
        # Fused: one pass over the weights, not ten.
        return eager(torch.optim.AdamW)(groups, weight_decay=WEIGHT_DECAY, fused=True)

    def parameter_groups(self, phase: Phase) -> list[dict[str, Any]]:
        """Return an optimizer's groups with their highest learning rates: the head, then stages, deepest first.

        From the deepest trainable stage on, the learning rate falls by `lr_decay` with each stage of the trunk. An
        anchor takes the place of weight decay.
        """
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "lr": phase.head_lr}]
        anchored = {"weight_decay": 0.0} if phase.anchor else {}
        names = () if self.trunk is None else self.trunk.names
        found = list(self.parameters(phase).items())[::-1]
        for stage, parameters in found:
            distance = names.index(found[0][0]) - names.index(stage)
            lr = phase.trunk_lr * phase.lr_decay**distance
            groups.append({"params": list(parameters.values()), "lr": lr, "names": list(parameters), **anchored})
        return [group for group in groups if group["params"]]

    def reinitialize(self, backbone: Backbone, count: int, seed: int) -> None:
        """Give the `count` deepest stages random weights, which follow from the seed."""
        assert self.trunk is not None  # noqa: S101 - see `split`
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = backbone.stages(pretrained=False)
        for name in self.trunk.names[len(self.trunk.names) - count :]:
            self.trunk.stages[name].load_state_dict(fresh[name].state_dict())

    def _modules(self, stage: str) -> list[tuple[str, nn.Module]]:
        """Return the modules of a stage with the prefixes of their names: the pool belongs to the deepest."""
        assert self.trunk is not None  # noqa: S101 - see `split`
        pool = [("pool", self.trunk.pool)] if stage == self.trunk.names[-1] else []
        return [(f"stages.{stage}", self.trunk.stages[stage]), *pool]

    def _frozen_norms(self, phases: Sequence[Phase], stage: str) -> list[nn.Module]:
        """Return the batch norms of a stage whose running statistics the last of these phases keeps.

        A reinitialized stage has none to keep.
        """
        assert self.trunk is not None  # noqa: S101 - see `split`
        names = self.trunk.names
        kept = names[: len(names) - max(phase.reinit for phase in phases)]
        if phases[-1].batchnorm == "update" or stage not in kept:
            return []
        return [*batch_norms(module for _, module in self._modules(stage))]


def eager(optimizer: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return an optimizer whose methods don't import `torch._dynamo`, which takes seconds, to tell it to stay away."""
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods)


def pull_to_origin(optimizer: torch.optim.Optimizer, origin: Tensors, anchor: float) -> None:
    """Pull anchored weights towards those before training, decoupled from the gradient as AdamW's weight decay.

    L2-SP: Li et al., "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018.
    """
    with torch.no_grad():
        for group in optimizer.param_groups if anchor else ():
            for name, parameter in zip(group.get("names", ()), group["params"], strict=False):
                parameter.lerp_(origin[name], min(1.0, group["lr"] * anchor))


def update_average(average: Tensors, weights: Tensors, decay: float) -> None:
    """Move a moving average, if there is one, towards the weights; what is no floating point number is copied."""
    names = [name for name in average if weights[name].is_floating_point()]
    if names:
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        update([average[name] for name in names], [weights[name] for name in names], 0)
    average |= {name: weights[name].clone() for name in average.keys() - names}


class Preparation:
    """Changes of a strategy to the stages for the time of a training, and the proof of what that left unchanged.

    `changing` names the tensors that the phases may change.
    """

    def __init__(self, network: Network, phases: Sequence[Phase], prepare: Prepare, seed: int) -> None:
        assert network.trunk is not None  # noqa: S101 - see `Network.split`
        self.trunk = network.trunk
        self.original, self.structure = tensor_hashes(self.trunk), _structure(self.trunk)
        self.merge = prepare_stages(network, phases, prepare, seed)
        self.prepared = self.original if self.merge is None else tensor_hashes(self.trunk)
        self.changing = network.changing(phases)

    def finish(self) -> tuple[str, ...]:
        """Prove that training changed no other tensors, merge what was prepared, and return the changed stages.

        Raises a GateError if frozen tensors changed, or if the merged stages have another structure than the original
        ones or compute something else.
        """
        if self.merge is not None:
            _proven(self.trunk, self.prepared, self.changing)
            images = _images(self.trunk)
            with torch.inference_mode():
                expected = self.trunk.eval()(images)
            self.merge()
            with torch.inference_mode():
                error = ((self.trunk(images) - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
            if not error <= MERGED:
                raise GateError(f"merging changed the features by {error:.2g} of the largest one", do=_TO_AUTHOR)
        if _structure(self.trunk) != self.structure:
            raise GateError("the merged stages have another structure than the original ones", do=_TO_AUTHOR)
        trained = {_stage(name, self.trunk) for name in self.changing if not name.startswith("head.")}
        replaced = [name for name in self.original.keys() - self.prepared.keys() if _stage(name, self.trunk) in trained]
        changed = _proven(self.trunk, self.original, {*self.changing, *replaced})
        return tuple(name for name in self.trunk.names if name in {_stage(each, self.trunk) for each in changed})


_TO_AUTHOR = "report this to the author of the strategy: prepare() has to return a function that undoes its changes"


def prepare_stages(network: Network, phases: Sequence[Phase], prepare: Prepare, seed: int) -> Callable[[], None] | None:
    """Let a strategy prepare the stages, and return the function that merges them again, if there is one.

    Raises a UsageError, with the names there are, for globs that match no parameter of a phase's stages.
    """
    assert network.trunk is not None  # noqa: S101 - see `Network.split`
    device = network.trunk.normalize.mean.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        merge = prepare(dict(network.trunk.stages.items()))
    network.trunk.to(device)
    if merge is not None:
        with torch.no_grad():
            features = network.trunk(_images(network.trunk).to(device))
        if features.ndim != 2 or len(features) != len(_images(network.trunk)):
            raise GateError(f"the prepared stages give features {tuple(features.shape)} for two images", do=_TO_AUTHOR)
    if merge is not None and any(phase.reinit for phase in phases):
        raise UsageError("a phase reinitializes stages that the strategy prepares", do="leave out one of the two")
    for number, phase in enumerate(phases, start=1):
        there = network.parameters(replace(phase, parameters=("*",)))
        for glob in phase.parameters if phase.parameters != ("*",) else ():
            if not any(network.parameters(replace(phase, parameters=(glob,))).values()):
                names = [name.partition(".")[2] for found in there.values() for name in found]
                what = f"phase {number}: no parameter of {', '.join(there) or 'its stages'} matches {glob!r}"
                raise UsageError(what, do=f"choose among {listed(names, limit=20)}")
    return merge


def _images(trunk: Trunk) -> Tensor:
    """Return two images of noise."""
    shape = (2, *[trunk.preprocessing.size] * 2, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tensor_hashes(trunk: Trunk) -> dict[str, str]:
    """Return a hash of every parameter and buffer by name."""
    return {name: hash_tensors({name: tensor}) for name, tensor in _tensors(trunk)}


def _proven(trunk: Trunk, before: Mapping[str, str], changing: Collection[str]) -> list[str]:
    """Return the tensors that differ in a bit from the hashes; raise a GateError if one may not change."""
    after = tensor_hashes(trunk)
    changed = [name for name, known in before.items() if after.get(name) != known]
    if wrong := [name for name in changed if name not in changing]:
        raise GateError(
            f"frozen tensors changed during training: {listed(wrong)}",
            do="report this to the author of the backbone: a module in eval mode must not change itself",
        )
    return changed


def _structure(trunk: Trunk) -> tuple[dict[str, type], dict[str, Any]]:
    """Return the classes of the modules and the shapes of the tensors, from which the operators of a graph follow."""
    modules = {name: type(module) for name, module in trunk.named_modules()}
    return modules, {name: tensor.shape for name, tensor in _tensors(trunk)}


def _stage(name: str, trunk: Trunk) -> str:
    """Return the stage that a tensor belongs to; those of the pool belong to the deepest."""
    return name.split(".")[1] if name.startswith("stages.") else trunk.names[-1]


def provenance(stages: Sequence[str], phases: Sequence[Phase], changed: Sequence[str]) -> dict[str, str]:
    """Return for each stage whether its weights are the original ones, fine-tuned, or reinitialized.

    `changed` names those that differ: the best weights may be those before a stage was trained.
    """
    fresh = stages[len(stages) - max(phase.reinit for phase in phases) :]
    return {
        stage: ORIGINAL if stage not in changed else REINITIALIZED if stage in fresh else FINE_TUNED for stage in stages
    }


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _matches(module: nn.Module, name: str, glob: str) -> bool:
    """Return True for a parameter of this name, or of this class of module (see `Phase`)."""
    owner, _, leaf = name.rpartition(".")
    return fnmatchcase(name, glob) or fnmatchcase(f"{type(module.get_submodule(owner)).__name__}.{leaf}", glob)
