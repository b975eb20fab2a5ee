"""TensorRT-RTX builds every standard backbone in every precision under every standard head.

An export builds three engines: trunk, head, and both joined. In the ordinary suite every trunk is built in every
precision, and so is every head. Those are all there are, whatever is paired with what: the graph of a head is float32
from features of one width, the same for every trunk and precision, which is checked. The joined graph of a pair adds
one thing, that the two meet, and they meet at the tensor `features`, which is an output of the engine and so is not
fused away: the parser sees the nodes of one and then those of the other. Joined engines are therefore built once for
each trunk and precision, with the heads in turn; all 54 pairs are in the slow test, some two seconds each.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tlkit_standard.backbones import BACKBONES
from tlkit_standard.heads import HEADS
from tlkit_standard.targets.tensorrt_rtx import TensorRTRTX

from tests.kit.fake_cuda import needs_rtx
from tlkit.exporting.calibration import ranges
from tlkit.graph.compose import cut_graph, merge_graphs
from tlkit.graph.metadata import build_source
from tlkit.graph.quantize import OPERATORS, quantize
from tlkit.graph.trace import half_precision_graph, head_graph, stage_graph
from tlkit.model.exports import PRECISIONS
from tlkit.model.trunk import build
from tlkit.plugin.contract import OptimizationProfile, silent

ROWS, CLASSES, WIDTH = 60, 3, 1280


@pytest.fixture(scope="module")
def trunks():
    """Graphs by backbone and precision, each made once."""
    made = {}

    def trunk(backbone, precision):
        if (backbone.name, precision) not in made:
            made[backbone.name, precision] = graph(backbone, precision)
        return made[backbone.name, precision]

    def graph(backbone, precision):
        whole = build(backbone)
        if precision == "fp16":
            return half_precision_graph(whole)
        fp32 = cut_graph(onnx.load(stage_graph(whole)), whole.names[-1])
        if precision == "fp32":
            return fp32
        size = backbone.preprocessing.size
        images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        found = ranges(fp32, images, backbone.preprocessing, OPERATORS)
        return quantize(fp32, found, flavor="int8-symmetric")

    return trunk


def fitted(head, width):
    random = np.random.default_rng(0)
    labels = np.arange(ROWS) % CLASSES
    features = np.abs(random.normal(labels[:, None], 1, (ROWS, width))).astype(np.float32)
    return head.solve(features, labels, CLASSES, 0) or head.module(width, CLASSES)


def check_build(trunk, head, folder):
    """Join a trunk and a fitted head, and build the engine."""
    width = trunk.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    whole = onnx.ModelProto.FromString(trunk.SerializeToString())  # joining takes it apart
    file = folder / "model.onnx"
    onnx.save(merge_graphs(whole, head_graph(fitted(head, width).eval(), width)), file)
    TensorRTRTX().build(build_source(file), folder / "model.engine", OptimizationProfile(1, 2, 4), silent)
    assert (folder / "model.engine").stat().st_size > 1e6


backbones = pytest.mark.parametrize("backbone", BACKBONES, ids=lambda component: component.name)
precisions = pytest.mark.parametrize("precision", PRECISIONS)


@needs_rtx
@precisions
@backbones
def test_every_backbone_in_every_precision_and_every_head_once(trunks, backbone, precision, tmp_path):
    turn = len(PRECISIONS) * BACKBONES.index(backbone) + PRECISIONS.index(precision)
    check_build(trunks(backbone, precision), HEADS[turn % len(HEADS)], tmp_path)


@needs_rtx
def test_every_trunk_in_every_precision_ends_where_every_head_begins(trunks):
    ends = {
        (output.type.tensor_type.elem_type, *(each.dim_value for each in output.type.tensor_type.shape.dim))
        for backbone in BACKBONES
        for precision in PRECISIONS
        for output in trunks(backbone, precision).graph.output
    }
    assert ends == {(onnx.TensorProto.FLOAT, 0, WIDTH)}


@needs_rtx
@pytest.mark.parametrize("head", HEADS, ids=lambda component: component.name)
def test_every_head_by_itself(head, tmp_path):
    onnx.save(head_graph(fitted(head, WIDTH).eval(), WIDTH), tmp_path / "head.onnx")
    TensorRTRTX().build(
        build_source(tmp_path / "head.onnx"), tmp_path / "head.engine", OptimizationProfile(1, 2, 4), silent
    )
    assert (tmp_path / "head.engine").stat().st_size > 1000


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS, ids=lambda component: component.name)
@precisions
@backbones
def test_every_head_on_every_backbone_in_every_precision(trunks, backbone, precision, head, tmp_path):
    check_build(trunks(backbone, precision), head, tmp_path)
