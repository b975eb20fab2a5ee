"""Programs of ExecuTorch give what PyTorch gives, for every batch size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tlkit_executorch import ExecuTorch
from tlkit_executorch.program import FACTS

from tlkit.conformance import checks, small
from tlkit.errors import ArtifactError, UsageError
from tlkit.graph.metadata import build_source
from tlkit.plugin.contract import OptimizationProfile, silent
from tlkit.runtime.session import OnnxSession


@pytest.mark.parametrize(("name", "check"), checks(ExecuTorch()))
def test_it_keeps_the_contract(name: str, check: Callable[[], None]) -> None:
    check()


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    onnx.save_model(small.model(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("profile", [OptimizationProfile(2, 2, 4), OptimizationProfile(3, 3, 3)])
def test_other_batches_than_it_was_built_for_run_in_parts(graph: Path, profile: OptimizationProfile) -> None:
    out = graph.with_suffix(".executorch")
    ExecuTorch().build(small.source(graph), out, profile, silent)
    session = ExecuTorch().open(out)
    for count in (1, 3, 8):
        expected, got = (each.run(small.images(count)) for each in (OnnxSession(graph), session))
        assert all(np.allclose(expected[name], got[name], atol=1e-4) for name in expected)


def test_names_and_metadata_are_beside_the_program(graph: Path) -> None:
    out = graph.with_suffix(".executorch")
    ExecuTorch().build(small.source(graph), out, OptimizationProfile(1, 2, 4), silent)
    assert ExecuTorch().open(out).metadata == small.FACTS
    facts = json.loads((out / FACTS).read_text())
    assert (facts["input"], facts["outputs"]) == ("images", ["features", "logits"])
    (out / FACTS).write_text(json.dumps(facts | {"sha256": "0" * 64}))
    with pytest.raises(ArtifactError, match="not a whole program"):
        ExecuTorch().open(out)
    (out / FACTS).write_text(json.dumps(facts))
    session = ExecuTorch().open(out)
    with pytest.raises(ArtifactError, match="ExecuTorch fails"):
        session.run(np.zeros((2, 3), np.uint8))
    assert session.run(small.images(2))["logits"].shape == (2, small.CLASSES)


def test_a_graph_without_modules_is_refused(graph: Path) -> None:
    with pytest.raises(UsageError, match="as a graph alone"):
        ExecuTorch().build(build_source(graph), graph.with_suffix(".executorch"), OptimizationProfile(), silent)


def test_without_executorch_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert 'pip install "executorch' in str(ExecuTorch().missing())
