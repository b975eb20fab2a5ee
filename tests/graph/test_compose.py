"""Graphs that are cut, merged and renamed compute what the modules compute."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from tests.kit.tiny import WIDTHS, Tiny
from tlkit.graph import trace
from tlkit.graph.compose import cut_graph, merge_graphs
from tlkit.model import trunk as trunks
from tlkit.model.modules import run_modules
from tlkit.plugin.contract import FEATURES, LOGITS
from tlkit.runtime.session import OnnxSession


@pytest.fixture(scope="module")
def tiny():
    return trunks.build(Tiny())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("cut", WIDTHS)
def test_every_cut_gives_what_the_module_gives(tiny, images, cut, tmp_path):
    graph = cut_graph(onnx.load(trace.stage_graph(tiny)), cut)
    onnx.save(graph, tmp_path / "trunk.onnx")
    with torch.inference_mode():
        expected = tiny.upto(cut)(torch.from_numpy(images)).numpy()
    session = OnnxSession(tmp_path / "trunk.onnx")
    for rows in (1, 2, 5):
        assert np.allclose(session.run(images[:rows])[FEATURES], expected[:rows], atol=1e-5)
    assert [output.name for output in graph.graph.output] == [FEATURES]
    batch, width = graph.graph.output[0].type.tensor_type.shape.dim
    assert (batch.dim_param, width.dim_value) == ("batch", WIDTHS[cut])


def test_a_shallow_cut_holds_no_deeper_weights(tiny):
    graph = onnx.load(trace.stage_graph(tiny))
    sizes = [sum(np.prod(t.dims) for t in cut_graph(graph, cut).graph.initializer) for cut in WIDTHS]
    assert sizes == sorted(set(sizes))


def test_a_head_keeps_its_operators_when_merged(tmp_path):
    head = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.GELU(), torch.nn.Linear(5, 2)).eval()
    trunk = trunks.build(Tiny()).upto("second")
    joined = merge_graphs(cut_graph(onnx.load(trace.stage_graph(trunk)), "second"), trace.head_graph(head, 8))
    onnx.checker.check_model(joined, full_check=True)
    onnx.save(joined, tmp_path / "m.onnx")
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = run_modules(trunk, head, images)
    got = OnnxSession(tmp_path / "m.onnx").run(images)
    assert np.allclose(got[LOGITS], expected[LOGITS], atol=1e-5)
