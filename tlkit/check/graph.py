"""What is asked of a graph, whatever it was traced from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

CORE = frozenset({"", "ai.onnx"})


def foreign_operators(model: onnx.ModelProto) -> list[str]:
    """The operators of a graph, and of those inside its nodes, that are not ONNX's own."""
    found = [f"{node.domain}::{node.op_type}" for node in _nodes(model.graph.node) if node.domain not in CORE]
    return sorted({*found, *(f"{function.domain}::{function.name}" for function in model.functions)})


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner.node)
