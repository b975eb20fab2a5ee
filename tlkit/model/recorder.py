"""Record the calls of a network in the order of execution, each with the value that an example has there.

As `torch.fx` does, with one addition: two examples run beside, of different content and batch size. What is equal for
both, sizes of maps above all, is a constant, so that code which depends on it is recorded as it runs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn


class Unrecordable(Exception):
    """Reason that a network can't be recorded, as `it ...`."""


class Value(fx.Proxy):
    """Recorded value."""

    tracer: Recorder

    @property
    def known(self) -> Any:
        """Value that the example has here."""
        return self.tracer.values[self.node]

    def size(self, dim: int | None = None) -> Any:
        other = self.tracer.others[self.node]
        sizes = tuple(
            size if size == other.shape[place] else self.tracer.create_proxy("call_method", "size", (self, place), {})
            for place, size in enumerate(self.known.shape)
        )
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
            raise Unrecordable("its path depends on the content of the images")
        return bool(self.known)


class Recorder(fx.Tracer):
    """Recorder of the calls in `opened` modules; others are recorded as one call. `record` fills its attributes."""

    proxy_buffer_attributes = True

    def __init__(self, opened: set[nn.Module], image: Tensor) -> None:
        super().__init__()
        self.opened, self.image = opened, image
        self.values: dict[fx.Node, Any] = {}  # for the image
        self.others: dict[fx.Node, Any] = {}  # for one that is black
        self.dependent: set[fx.Node] = set()  # nodes whose values differ
        self._running = False

    def record(self, network: nn.Module) -> None:
        """Run the network on the image. Raises Unrecordable."""
        try:
            self.graph = self.trace(network)
        except Unrecordable:
            raise
        except Exception as error:
            raise Unrecordable(f"it can't be recorded: {first_line(error)}") from error
        self.graph.eliminate_dead_code(lambda node: node.op in {"placeholder", "output"})

    def parameters(self, node: fx.Node) -> Iterator[Tensor]:
        """Yield the parameters of a node, and those in what it gets beside the image."""
        if node.op == "call_module":
            yield from self.root.get_submodule(str(node.target)).parameters()
        elif node.op == "get_attr" and isinstance(self.values[node], nn.Parameter):
            yield self.values[node]
        for given in node.all_input_nodes:
            if given not in self.dependent:
                yield from self.parameters(given)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.opened

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)

    def create_node(self, kind: str, *call: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, *call, **named)
        self._running = True
        try:
            value = self.values[node] = self._run(node, self.image, self.values)
            other = self.others[node] = self._run(node, torch.zeros_like(self.image[:1]), self.others)
            if kind == "placeholder" or (self.dependent & {*node.all_input_nodes} and not _equal(value, other)):
                self.dependent.add(node)
        finally:
            self._running = False
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def iter(self, obj: Any) -> Iterator[Any]:
        return iter([obj[index] for index in range(len(obj))])

    def _run(self, node: fx.Node, image: Tensor, values: dict[fx.Node, Any]) -> Any:
        """Compute a node from the values of its inputs."""

        def copy(given: fx.Node) -> Any:  # a call may change it in place
            value = values[given]
            return value.clone() if given in self.dependent and isinstance(value, Tensor) else value

        args: Any = fx.node.map_arg(node.args, copy)
        kwargs: Any = fx.node.map_arg(node.kwargs, copy)
        target: Any = node.target
        match node.op:
            case "placeholder":
                return image
            case "get_attr":
                return operator.attrgetter(target)(self.root)
            case "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "call_function":
                return target(*args, **kwargs)
        return None


def first_line(error: Exception) -> str:
    """Return the first line of an error, or its type."""
    return str(error).partition("\n")[0] or type(error).__name__


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and (one.is_meta or torch.equal(one, other))
    return isinstance(one, int | float | str | None) and type(one) is type(other) and one == other
