"""Files of ONNX Runtime's own format compute what the ONNX file computes, and are told apart from others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tlkit_ort import Ort
from tlkit_ort.session import OrtSession

from tlkit.conformance import checks, small
from tlkit.errors import ArtifactError
from tlkit.plugin.contract import OptimizationProfile, silent
from tlkit.runtime.session import OnnxSession


@pytest.mark.parametrize(("name", "check"), checks(Ort()))
def test_it_keeps_the_contract(name: str, check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(("name", "check"), checks(Ort(tuned=True, workers=2)))
def test_and_so_it_does_for_this_processor_with_two_workers(name: str, check: Callable[[], None]) -> None:
    check()


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    onnx.save_model(small.model(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def build(graph: Path, target: Ort) -> Path:
    out = graph.with_suffix(".ort")
    target.build(small.source(graph), out, OptimizationProfile(), silent)
    return out


def test_metadata_is_in_the_file(graph: Path) -> None:
    assert OrtSession(build(graph, Ort())).metadata == small.FACTS


def test_outputs_are_those_of_the_onnx_file(graph: Path) -> None:
    session, images = OrtSession(build(graph, Ort())), small.images(5)
    for name, array in OnnxSession(graph).run(images).items():
        assert np.allclose(session.run(images)[name], array, atol=1e-5)


def test_an_onnx_file_of_this_name_is_refused(graph: Path) -> None:
    graph.rename(graph.with_suffix(".ort"))
    with pytest.raises(ArtifactError, match=r"model\.ort: not in ONNX Runtime's own format"):
        Ort().open(graph.with_suffix(".ort"))


def test_a_portable_file_fits_every_machine_and_a_tuned_one_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ort().machine() == {}
    here = Ort(tuned=True).machine()
    assert Ort(tuned=True).incompatible(here) is None
    monkeypatch.setattr("tlkit_ort.processor_kind", lambda: "another")
    assert "it was built for processor" in str(Ort(tuned=True).incompatible(here))


def test_an_array_that_does_not_fit_is_refused_and_the_session_goes_on(graph: Path) -> None:
    session = OrtSession(build(graph, Ort()))
    with pytest.raises(ArtifactError, match="ONNX Runtime fails"):
        session.run(np.zeros((2, 3), np.uint8))
    assert session.run(small.images(2))["logits"].shape == (2, small.CLASSES)
