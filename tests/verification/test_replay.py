"""The golden images, replayed from bytes to logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.kit.exporting import replayed
from tests.kit.tiny import resign
from tlkit.data.preprocessing import load
from tlkit.errors import ArtifactError, UsageError
from tlkit.model.bundle import open_bundle
from tlkit.model.exports import Exports
from tlkit.training.run import train
from tlkit.verification import replay as verifying
from tlkit.verification.replay import replay


def test_what_was_exported_is_what_was_trained(tiny_run):
    result = replayed(tiny_run)
    assert result.passed
    assert (result.images, result.changed_images) == (4, ())
    assert set(result.verdicts) == {"trunk", "head", "model"}


@pytest.mark.parametrize("name", ["trunk.onnx", "head.onnx", "model.onnx"])
def test_a_changed_weight_is_caught(own_run, name):
    file = own_run / "onnx/fp32" / name
    graph = onnx.load(file)
    weight = next(t for t in graph.graph.initializer if len(t.dims) >= 2)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.02), weight.name))
    onnx.save(graph, file)
    with pytest.raises(ArtifactError, match="changed after export"):
        replayed(own_run)
    resign(own_run, name)
    result = replayed(own_run)
    assert [graph for graph, verdict in result.verdicts.items() if not verdict.passed] == [name.split(".")[0]]


@pytest.mark.parametrize(
    "change",
    [{"interpolation": "lanczos"}, {"crop_pct": 0.8}, {"interpolation": "nearest"}, {"crop_mode": "squash"}],
    ids=str,
)
def test_other_pixels_are_caught(tiny_run, monkeypatch, change):
    real = verifying.load
    monkeypatch.setattr(
        verifying, "load", lambda content, preprocessing: real(content, replace(preprocessing, **change))
    )
    result = replayed(tiny_run)
    assert len(result.changed_images) == 4
    assert not result.passed


def test_swapped_channels_are_caught(tiny_run, monkeypatch):
    monkeypatch.setattr(verifying, "load", _bgr)
    assert not replayed(tiny_run).passed


def _bgr(content, preprocessing):
    return load(content, preprocessing)[..., ::-1]


def test_without_golden_images_there_is_nothing_to_replay(pictures, tiny_config, tmp_path):
    train(pictures, tmp_path / "run", replace(tiny_config, golden=0))
    with pytest.raises(UsageError, match="no golden images"):
        replay(open_bundle(tmp_path / "run"), None)  # before an export is looked at


def test_what_was_not_exported_names_the_command(own_run):
    with pytest.raises(ArtifactError, match="tlkit export"):
        replayed(own_run, "fp32", "tensorrt")
    assert Exports.of(open_bundle(own_run)).names() == [("onnx", "fp32")]
