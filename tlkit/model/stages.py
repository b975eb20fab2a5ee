"""Take a library's network apart into a chain of stages, whatever its family.

The network runs once on an example and its calls are recorded in the order of execution, as in `torch.fx`, each with
the value that it gave. Where exactly one tensor of images is alive, and no weights are used on both sides, the network
can be cut. The modules that are called are the library's own; what its `forward` does between them is recorded with
them, so no code of a library is repeated and none is run by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from tlkit.model.trunk import MeanPool

ENOUGH = 4  # stages before the pooling; with fewer, the largest container is opened
TOLERANCE = 1e-5  # relative: both run the same modules on the same numbers


class NotAChain(Exception):
    """Reason that a network can't be taken apart, as `it ...`."""


def take_apart(network: nn.Module, image: Tensor, pool: nn.Module | None = None) -> dict[str, nn.Module]:
    """Return the stages of a network from images `(N, 3, S, S)` to features `(N, width)`: stem, stage1, ..., last.

    `image` is an example of at least two. The network's own pooling is left out if `pool` does the same; if it has
    weights, it belongs to the deepest stage, and to one of its own, `last`, if these are more than a norm's. Raises
    NotAChain.
    """
    pool = pool or MeanPool()
    with torch.no_grad():
        features = network(image)
        if not isinstance(features, Tensor) or features.ndim != 2:
            raise NotAChain(f"it gives {_shape(features)} for an image, not features")
        parts = _parts(network, image)
        if len(parts) < 2:
            raise NotAChain("it has no place to be cut at: more than one tensor passes, or weights are shared")
        parts[-1] = _without_pooling(parts[-1], pool, features)
        named = dict(zip(_names(parts), [part.module() for part in parts], strict=True))
        _check(named, pool, image, features)
    return {name: stage.eval() for name, stage in named.items()}


class _Value(fx.Proxy):
    """Recorded value. Its shape is known but for the batch size, so that code which depends on shapes can run."""

    tracer: _Recorder

    @property
    def known(self) -> Any:
        """Value that the example has here."""
        return self.tracer.values[self.node]

    def size(self, dim: int | None = None) -> Any:
        sizes = tuple(self.known.shape)
        if sizes and self.node in self.tracer.dependent:
            sizes = (self.tracer.create_proxy("call_method", "size", (self, 0), {}), *sizes[1:])
        return sizes if dim is None else sizes[dim]

    shape = property(size)
    ndim = property(lambda self: self.known.ndim)
    dtype = property(lambda self: self.known.dtype)
    device = property(lambda self: self.known.device)
    is_cuda = property(lambda self: self.known.is_cuda)

    def dim(self) -> int:
        return int(self.known.ndim)

    def is_floating_point(self) -> bool:
        return bool(self.known.is_floating_point())

    def __len__(self) -> int:
        return len(self.known)

    def __bool__(self) -> bool:
        if isinstance(self.known, Tensor):
            raise NotAChain("its path depends on the content of the images")
        return bool(self.known)


class _Recorder(fx.Tracer):
    """Recorder of the calls in `opened` modules; others are recorded as one call."""

    proxy_buffer_attributes = True

    def __init__(self, opened: set[nn.Module], image: Tensor) -> None:
        super().__init__()
        self.opened, self.image = opened, image
        self.values: dict[fx.Node, Any] = {}
        self.dependent: set[fx.Node] = set()  # nodes whose value depends on the image
        self._running = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.opened

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_node(self, kind: str, *call: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, *call, **named)
        if kind == "placeholder" or self.dependent & {*node.all_input_nodes}:
            self.dependent.add(node)
        self._running = True
        try:
            self.values[node] = self._run(node)
        finally:
            self._running = False
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def iter(self, obj: Any) -> Iterator[Any]:
        return iter([obj[index] for index in range(len(obj))])

    def _copy(self, node: fx.Node) -> Any:
        """Return the value of a node, which a call may change in place."""
        value = self.values[node]
        return value.clone() if node in self.dependent and isinstance(value, Tensor) else value

    def _run(self, node: fx.Node) -> Any:
        """Compute the value of a node from those of its inputs."""
        args: Any = fx.node.map_arg(node.args, self._copy)
        kwargs: Any = fx.node.map_arg(node.kwargs, self._copy)
        target: Any = node.target
        match node.op:
            case "placeholder":
                return self.image
            case "get_attr":
                return operator.attrgetter(target)(self.root)
            case "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "call_function":
                return target(*args, **kwargs)
        return None


@dataclass
class _Part:
    """Piece of a recording between two cuts: the nodes that compute `out` from `given`."""

    recorder: _Recorder
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
        made = {self.given: graph.placeholder("x")}

        def add(node: fx.Node) -> fx.Node:
            if node in made:
                return made[node]
            if node in self.recorder.dependent and node not in self.nodes:  # the size of a batch is all that is left
                made[node] = graph.call_method("size", (made[self.given], 0))
                return made[node]
            made[node] = graph.node_copy(node, add)
            made[node].meta = {}
            if node.op == "get_attr":
                value = self.recorder.values[node]
                held[str(node.target)] = value if isinstance(value, nn.Parameter) else value.detach().clone()
            elif node.op == "call_module":
                held[str(node.target)] = self.recorder.root.get_submodule(str(node.target))
            return made[node]

        for node in self.nodes:
            add(node)
        graph.output(made[self.out])
        calls = [node for node in graph.nodes if node.op not in {"placeholder", "output"}]
        if len(calls) == 1 and calls[0].op == "call_module" and len(calls[0].all_input_nodes) == 1:
            called: nn.Module = held[str(calls[0].target)]
            return called
        return fx.GraphModule(held, graph)


def _parts(network: nn.Module, image: Tensor) -> list[_Part]:
    """Return the parts of a network, each with matrices or filters; containers are opened until there are enough."""
    opened, best = {network}, list[_Part]()
    while True:
        parts = _merged(_cut(_record(network, image, opened)))
        best = max(best, parts, key=len)
        if sum(part.recorder.values[part.out].ndim > 2 for part in parts) >= ENOUGH:
            return best
        modules = [module for part in parts for module in part.modules.values()]
        kinds = [type(module) for module in modules]  # of a kind that is repeated, each is a stage
        closed = [each for each in modules if kinds.count(type(each)) == 1 or type(each) is nn.Sequential]
        closed = [each for each in closed if next(each.children(), None) is not None]
        if not closed:
            return best
        opened = opened | {max(closed, key=lambda module: sum(p.numel() for p in module.parameters()))}


def _record(network: nn.Module, image: Tensor, opened: set[nn.Module]) -> _Recorder:
    recorder = _Recorder(opened, image)
    try:
        recorder.graph = recorder.trace(network)
    except NotAChain:
        raise
    except Exception as error:
        raise NotAChain(f"it can't be recorded: {str(error).partition(chr(10))[0]}") from error
    recorder.graph.eliminate_dead_code(lambda node: node.op in {"placeholder", "output"})
    return recorder


def _cut(recorder: _Recorder) -> list[_Part]:
    """Return the smallest parts of a recording."""
    order = {node: place for place, node in enumerate(recorder.graph.nodes)}
    first, *_, output = order
    path = [node for node in order if node in recorder.dependent and node is not output]
    final = output.args[0]
    if not isinstance(final, fx.Node):
        raise NotAChain("its output is not one tensor")
    last_use = {node: max(order[user] for user in node.users) for node in path}
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


def _is_batch(recorder: _Recorder, node: fx.Node) -> bool:
    """Return true for floats `(N, ..., ...)`."""
    value = recorder.values[node]
    right = isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2
    return right and len(value) == len(recorder.image)


def _is_batch_size(recorder: _Recorder, node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "size" and recorder.values[node] == len(recorder.image)


def _spans(recorder: _Recorder, path: Sequence[fx.Node], order: dict[fx.Node, int]) -> list[tuple[int, int]]:
    """Return the places of first and last use of each parameter on the path."""
    spans: dict[int, tuple[int, int]] = {}
    for node in path:
        for parameter in _parameters(recorder, node):
            begin, _ = spans.get(id(parameter), (order[node], 0))
            spans[id(parameter)] = (begin, order[node])
    return [*spans.values()]


def _parameters(recorder: _Recorder, node: fx.Node) -> Iterator[Tensor]:
    """Yield the parameters of a node, and those in what it gets beside the image."""
    if node.op == "call_module":
        yield from recorder.root.get_submodule(str(node.target)).parameters()
    elif node.op == "get_attr" and isinstance(recorder.values[node], nn.Parameter):
        yield recorder.values[node]
    for given in node.all_input_nodes:
        if given not in recorder.dependent:
            yield from _parameters(recorder, given)


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
        weights = [each for rest in last.nodes[count:] for each in _parameters(last.recorder, rest)]
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
    return one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE * other.abs().max())


def _shape(value: object) -> str:
    return str(tuple(value.shape)[1:]) if isinstance(value, Tensor) else type(value).__name__
