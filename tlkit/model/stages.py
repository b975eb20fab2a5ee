"""Take a library's network apart into a chain of stages, whatever its family.

The network runs once on an example and its calls are recorded in the order of execution, as in `torch.fx`, each with
the value that it gave. Where exactly one tensor of images is alive, and no weights are used on both sides, the network
can be cut. The modules that are called are the library's own; what its `forward` does between them is recorded with
them, so no code of a library is repeated and none is run by name.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from tlkit.model.recorder import Recorder, Unrecordable, first_line
from tlkit.model.trunk import MeanPool

ENOUGH = 4  # stages before the pooling; with fewer, the largest container is opened
TOLERANCE = 1e-5  # relative: both run the same modules on the same numbers


class NotAChain(Exception):
    """Reason that a network can't be taken apart, as `it ...`."""


def take_apart(network: nn.Module, image: Tensor, pool: nn.Module | None = None) -> dict[str, nn.Module]:
    """Return the stages of a network from images `(N, 3, S, S)` to features `(N, width)`: stem, stage1, ..., last.

    `image` is an example of at least two; on the device `meta`, values are not compared. The network's own pooling is
    left out if `pool` does the same; if it has weights, it belongs to the deepest stage, and to one of its own, `last`,
    if these are more than a norm's. Raises NotAChain.
    """
    pool = pool or MeanPool()
    with torch.no_grad(), image.device if image.is_meta else nullcontext():
        features = _features(network, image)
        parts = _parts(network, image)
        if len(parts) < 2:
            raise NotAChain("it has no place to be cut at: more than one tensor passes, or weights are shared")
        parts[-1] = _without_pooling(parts[-1], pool, features)
        named = dict(zip(_names(parts), [part.module() for part in parts], strict=True))
        _check(named, pool, image, features)
    return {name: stage.eval() for name, stage in named.items()}


def _features(network: nn.Module, image: Tensor) -> Tensor:
    try:
        features = network(image)
    except Exception as error:  # each library has its own for a size that doesn't fit
        raise NotAChain(f"it takes no such images: {first_line(error)}") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise NotAChain(f"it gives {_shape(features)} for an image, not features")
    return features


@dataclass
class _Part:
    """Piece of a recording between two cuts: the nodes that compute `out` from `given`."""

    recorder: Recorder
    given: fx.Node
    out: fx.Node
    nodes: list[fx.Node] = field(default_factory=list)

    def __add__(self, other: _Part) -> _Part:
        return _Part(self.recorder, self.given, other.out, [*self.nodes, *other.nodes])

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Called modules that have matrices or filters, by path."""
        root, paths = self.recorder.root, [node.target for node in self.nodes if node.op == "call_module"]
        called = {str(path): root.get_submodule(str(path)) for path in paths}
        return {path: each for path, each in called.items() if any(p.ndim > 1 for p in each.parameters())}

    @property
    def container(self) -> str:
        """Path of the module that contains the first of `modules`."""
        return next(iter(self.modules), "").rpartition(".")[0]

    def module(self) -> nn.Module:
        """Return the part as a module. Constants in it are copies, since other parts may use them too."""
        graph, held = fx.Graph(), dict[str, Any]()
        made: dict[fx.Node, Any] = {self.given: graph.placeholder("x")}

        def add(node: fx.Node) -> Any:
            if node in made:
                return made[node]
            if node in self.recorder.dependent and node not in self.nodes:  # the size of a batch is all that is left
                made[node] = graph.call_method("size", (made[self.given], 0))
            elif node not in self.recorder.dependent and not any(True for _ in self.recorder.parameters(node)):
                made[node] = _hold(self.recorder.values[node], graph, held)
            else:
                if node.op in {"call_module", "get_attr"}:
                    path = str(node.target)
                    held[path] = operator.attrgetter(path)(self.recorder.root)
                made[node] = graph.node_copy(node, add)
                made[node].meta = {}
            return made[node]

        for node in self.nodes:
            add(node)
        graph.output(made[self.out])
        graph.eliminate_dead_code(lambda node: node.op in {"placeholder", "output"})
        calls = [node for node in graph.nodes if node.op not in {"placeholder", "output"}]
        if len(calls) == 1 and calls[0].op == "call_module" and len(calls[0].args) == 1 and not calls[0].kwargs:
            called: nn.Module = held[str(calls[0].target)]
            return called
        return fx.GraphModule(held, graph)


def _hold(value: Any, graph: fx.Graph, held: dict[str, Any]) -> Any:
    """Return a constant as an argument of a node; tensors in it are put into `held`."""
    if isinstance(value, tuple | list):
        return type(value)(_hold(each, graph, held) for each in value)
    if not isinstance(value, Tensor):
        return value
    name = f"constant{len(held)}"
    held[name] = value.detach().clone()
    return graph.get_attr(name)


def _parts(network: nn.Module, image: Tensor) -> list[_Part]:
    """Return the parts of a network, each with matrices or filters; containers are opened until there are enough."""
    opened, best = {network}, list[_Part]()
    while True:
        parts = _merged(_cut(_recorded(network, image, opened)))
        best = max(best, parts, key=len)
        if sum(part.recorder.values[part.out].ndim > 2 for part in parts) >= ENOUGH:
            return best
        modules = [module for part in parts for module in part.modules.values()]
        closed = [module for module in modules if next(module.children(), None) is not None]
        kinds = [type(module) for module in closed if type(module) is not nn.Sequential]
        if not closed or len(kinds) > len(set(kinds)):  # of a kind that is repeated, each is a stage
            return best
        opened = opened | {max(closed, key=lambda module: sum(p.numel() for p in module.parameters()))}


def _recorded(network: nn.Module, image: Tensor, opened: set[nn.Module]) -> Recorder:
    recorder = Recorder(opened, image)
    try:
        recorder.record(network)
    except Unrecordable as reason:
        raise NotAChain(str(reason)) from reason
    return recorder


def _cut(recorder: Recorder) -> list[_Part]:
    """Return the smallest parts of a recording."""
    order = {node: place for place, node in enumerate(recorder.graph.nodes)}
    first, *_, output = order
    path = [node for node in order if node in recorder.dependent and node is not output]
    final = output.args[0]
    if not isinstance(final, fx.Node):
        raise NotAChain("its output is not one tensor")
    on_path = {*path, output}
    last_use = {node: max((order[user] for user in node.users if user in on_path), default=-1) for node in path}
    shared = _spans(recorder, path, order)
    parts, part = [], _Part(recorder, first, first)
    for node in path[1:]:
        part.nodes.append(node)
        alive = [each for each in path if order[each] <= order[node] < last_use[each]]
        tensors = [each for each in alive if not _is_batch_size(recorder, each)]
        here = order[node]
        if node is final or (
            len(tensors) == 1
            and _is_batch(recorder, tensors[0])
            and not any(begin <= here < end for begin, end in shared)
        ):
            part.out = tensors[0]
            parts.append(part)
            part = _Part(recorder, part.out, part.out)
    return parts


def _is_batch(recorder: Recorder, node: fx.Node) -> bool:
    """Return true for floats `(N, ..., ...)`."""
    value = recorder.values[node]
    right = isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2
    return right and len(value) == len(recorder.image)


def _is_batch_size(recorder: Recorder, node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "size" and recorder.values[node] == len(recorder.image)


def _spans(recorder: Recorder, path: Sequence[fx.Node], order: dict[fx.Node, int]) -> list[tuple[int, int]]:
    """Return the places of first and last use of each parameter on the path."""
    spans: dict[int, tuple[int, int]] = {}
    for node in path:
        for parameter in recorder.parameters(node):
            begin, _ = spans.get(id(parameter), (order[node], 0))
            spans[id(parameter)] = (begin, order[node])
    return [*spans.values()]


def _merged(parts: Sequence[_Part]) -> list[_Part]:
    """Join parts without matrices and filters to the part before, the first to the next."""
    merged: list[_Part] = []
    for part in parts:
        if merged and not (part.modules and merged[-1].modules):
            merged[-1] = merged[-1] + part
        else:
            merged.append(part)
    return merged


def _without_pooling(last: _Part, pool: nn.Module, features: Tensor) -> _Part:
    """Return the last part without what `pool` does as well."""
    for count, node in enumerate(last.nodes, start=1):
        weights = [each for rest in last.nodes[count:] for each in last.recorder.parameters(rest)]
        value = last.recorder.values[node]
        if not weights and isinstance(value, Tensor) and value.ndim > 2 and _same(pool(value), features):
            return _Part(last.recorder, last.given, node, last.nodes[:count])
    return last


def _names(parts: Sequence[_Part]) -> list[str]:
    """Return `stem`, `stage1` and so on, and `last` for a layer that follows those of the same container."""
    names = ["stem", *(f"stage{number}" for number in range(1, len(parts)))]
    if parts[-1].container != parts[-2].container:
        names[-1] = "last"
    return names


def _check(stages: dict[str, nn.Module], pool: nn.Module, image: Tensor, features: Tensor) -> None:
    x = image
    for name, stage in stages.items():
        x = stage(x)
        if pool(x).ndim != 2:
            raise NotAChain(f"its {name} gives {_shape(x)} for an image, which is neither a map nor tokens")
    if not _same(pool(x), features):
        raise NotAChain("its stages, chained, don't compute what it computes")


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.is_meta:
        return one.shape == other.shape
    return bool((one - other).abs().max() <= TOLERANCE * other.abs().max())


def _shape(value: object) -> str:
    return str(tuple(value.shape)[1:]) if isinstance(value, Tensor) else type(value).__name__
