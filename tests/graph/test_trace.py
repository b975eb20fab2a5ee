"""A trunk is traced once per machine, and cut without another trace."""

from __future__ import annotations

import onnx
import pytest

from tests.kit.tiny import Tiny
from tlkit.graph import trace
from tlkit.graph.compose import stage_output
from tlkit.model import trunk as trunks


@pytest.fixture(scope="module")
def tiny():
    return trunks.build(Tiny())


def test_a_trunk_is_traced_once(tiny, monkeypatch):
    file = trace.stage_graph(tiny)
    monkeypatch.setattr(trace, "trace", None)  # calling it would fail
    assert trace.stage_graph(trunks.build(Tiny())) == file
    part = trace.cut_stage_graph(tiny, "second")
    assert trace.stage_graph(tiny.upto("second")) == part


def test_the_graph_of_a_cut_has_its_stages(tiny):
    graph = onnx.load(trace.cut_stage_graph(tiny, "second"))
    assert [o.name for o in graph.graph.output] == [stage_output("first"), stage_output("second")]
    onnx.checker.check_model(graph, full_check=True)
