"""The module, the graph and cached rows join the features of several stages to the same, in every precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from tlkit_standard.strategies import Full

from tests.kit.exporting import exported, searched
from tests.kit.tiny import WIDTHS, Tiny
from tlkit import cli
from tlkit.errors import UsageError
from tlkit.graph import trace
from tlkit.graph.compose import cut_graph
from tlkit.model import trunk as trunks
from tlkit.model.bundle import open_bundle
from tlkit.model.cut import check_cut, select
from tlkit.plugin.contract import FEATURES
from tlkit.runtime.evidence import OCCLUSION, Evidence
from tlkit.runtime.model import Model
from tlkit.runtime.session import OnnxSession
from tlkit.training.run import train

STAGES, CUT = tuple(WIDTHS), "first+third"
WIDTH = WIDTHS["first"] + WIDTHS["third"]


def test_a_cut_is_written_in_the_order_of_the_network_and_names_stages():
    assert check_cut("third", STAGES) == "third"
    assert check_cut("third+first+third", STAGES) == CUT
    for wrong in ("fourth", "first+", "first+fourth", ""):
        with pytest.raises(UsageError, match=r"there is no stage .* to cut at; choose one of first, second, third, or"):
            check_cut(wrong, STAGES)


def test_each_stage_has_norm_1_and_features_that_are_all_zero_stay_zero():
    widths = [2, 3, 1]
    rows = np.array([[3, 4, 9, 9, 9, -2], [0, 0, 9, 9, 9, 5]], np.float32)
    assert np.array_equal(select(rows, "second", STAGES, widths), rows[:, 2:5])
    assert np.allclose(select(rows, CUT, STAGES, widths), [[0.6, 0.8, -1], [0, 0, 1]])


def test_module_graph_and_rows_of_all_stages_agree(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    whole = trunks.build(Tiny())
    trunk = whole.upto("third+first")
    assert (trunk.cut, trunk.width) == (CUT, WIDTH)
    with torch.inference_mode():
        expected = trunk(torch.from_numpy(images)).numpy()
        stages = [each.numpy() for each in trunks.StageFeatures(whole)(torch.from_numpy(images))]
    norms = np.linalg.norm(expected[:, : WIDTHS["first"]], axis=1)
    assert np.allclose(norms, 1, atol=1e-5)
    assert np.allclose(select(np.concatenate(stages, 1), CUT, STAGES, [*WIDTHS.values()]), expected, atol=1e-6)
    graph = cut_graph(onnx.load(trace.stage_graph(whole)), CUT)
    onnx.save(graph, tmp_path / "trunk.onnx")
    assert np.allclose(OnnxSession(tmp_path / "trunk.onnx").run(images)[FEATURES], expected, atol=1e-5)
    batch, width = graph.graph.output[0].type.tensor_type.shape.dim
    assert (batch.dim_param, width.dim_value) == ("batch", WIDTH)
    half = trace.half_precision_graph(trunk)
    onnx.save(half, tmp_path / "half.onnx")
    assert np.allclose(OnnxSession(tmp_path / "half.onnx").run(images)[FEATURES], expected, atol=5e-3)


def test_a_bundle_is_trained_exported_and_verified_with_features_joined(pictures, tiny_config, tmp_path, capsys):
    run = tmp_path / "run"
    config = replace(tiny_config, cut="third+first")
    trained = train(pictures, run, config)
    assert trained.cut == CUT
    record = open_bundle(run).record
    assert (record.cut, record.stages, record.width) == (CUT, STAGES, WIDTH)
    exported(run, config.backbone, config.head)
    exported(run, config.backbone, config.head, "fp16")
    searched(run, config.backbone, config.head)
    assert cli.run(["verify", str(run)]) == 0, capsys.readouterr().err
    with Model.open(run / "onnx/fp32/model.onnx") as model, Evidence.of(model) as evidence:
        assert evidence.method == OCCLUSION  # no mean over positions gives these features


def test_joined_features_are_of_a_frozen_trunk(pictures, tiny_config, tmp_path):
    config = replace(tiny_config, cut=CUT, strategy=Full(epochs=1))
    with pytest.raises(UsageError, match=r"first, third are joined, .*full.* trains stages; take --strategy frozen"):
        train(pictures, tmp_path / "run", config)
    assert not list(tmp_path.iterdir())
