"""Trace without printing, open the graph, and refuse operators that are not ONNX's own."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import onnx

from tlkit.conformance.subject import expect_none
from tlkit.graph import trace as export
from tlkit.runtime.session import OnnxSession, on_disk

if TYPE_CHECKING:
    from torch import Tensor, nn

CORE = frozenset({"", "ai.onnx"})


def trace(module: nn.Module, example: Tensor, name: str, outputs: Sequence[str]) -> onnx.ModelProto:
    """Trace as `tlkit.graph.trace.trace` does, without the programs that PyTorch prints if it can't."""
    nowhere = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            return export.trace(module, example, name, outputs)
    finally:
        logging.disable(before)


def open_graph(model: onnx.ModelProto) -> OnnxSession:
    """Return a session of ONNX Runtime."""
    with on_disk(model) as file:
        return OnnxSession(file)


def expect_core_operators(model: onnx.ModelProto) -> None:
    """Fail if an operator of a graph, nested graphs included, is not ONNX's own."""
    found = [f"{node.domain}::{node.op_type}" for node in _nodes(model.graph.node) if node.domain not in CORE]
    foreign = sorted({*found, *(f"{function.domain}::{function.name}" for function in model.functions)})
    expect_none(foreign, "it needs operators that are not ONNX's", do="write it in plain operators")


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner.node)
