"""A vision transformer with a class token, which asks for the batch size, in every precision."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest

from tests.kit.exporting import exported, replayed
from tests.kit.tiny import Line
from tests.kit.vit import TinyVit
from tlkit.training.run import train


@pytest.fixture(scope="module")
def run(pictures, tiny_config, tmp_path_factory):
    run = tmp_path_factory.mktemp("vit") / "run"
    train(pictures, run, replace(tiny_config, backbone=TinyVit(), strategy=replace(tiny_config.strategy, epochs=20)))
    exported(run, TinyVit(), Line())
    return run


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_it_exports_and_verifies(run, precision):
    if precision != "fp32":
        exported(run, TinyVit(), Line(), precision)
    result = replayed(run, precision)
    assert result.passed
    assert set(result.verdicts) == {"trunk", "head", "model"}
    operators = [node.op_type for node in onnx.load(run / "onnx" / precision / "trunk.onnx").graph.node]
    assert "Shape" in operators
    assert ("QuantizeLinear" in operators) == (precision == "int8")
