"""A bundle in place is replaced in one step, keeps what others wrote into it, and replaces none of somebody else."""

from __future__ import annotations

import json
import shutil

import pytest

from tlkit.errors import UsageError
from tlkit.model.bundle import open_bundle
from tlkit.model.in_place import NOTES, described, found, put


def test_a_copy_takes_the_place_with_the_report_and_is_known_again(tiny_run, tmp_path):
    out, folder = tmp_path / "run", tmp_path / "training"
    folder.mkdir()
    assert found(out, folder) is None
    one = put(tiny_run, out, {"trials": [1]}, folder)
    bundle = open_bundle(out)
    assert (bundle.digest, bundle.record.strategy.report) == (one, {"trials": [1]})
    assert found(out, folder)["digest"] == one != open_bundle(tiny_run).digest
    assert described(found(out, folder)).endswith(f"accuracy {bundle.record.metrics['val']['accuracy']:.1%}")
    before = out.stat().st_ino
    assert put(tiny_run, out, {"trials": [1]}, folder) == one
    assert out.stat().st_ino == before
    other = put(tiny_run, out, {"trials": [1, 2]}, folder)
    assert open_bundle(out).digest == other
    assert json.loads((folder / NOTES).read_text()) == [["run", one], ["run", other]]


def test_what_came_before_does_not_come_back(tiny_run, tmp_path):
    out, folder = tmp_path / "run", tmp_path / "training"
    for name in ("frozen", "better"):
        shutil.copytree(tiny_run, folder / name)
    first, second = (put(folder / name, out, {"name": name}, folder) for name in ("frozen", "better"))
    assert put(folder / "frozen", out, {"name": "frozen"}, folder) is None
    assert put(folder / "frozen", out, {"name": "frozen, on another machine"}, folder) is None
    assert open_bundle(out).digest == second != first
    shutil.rmtree(out)
    assert put(folder / "frozen", out, {"name": "frozen"}, folder) == first


def test_what_others_wrote_into_it_stays(tiny_run, tmp_path):
    out, folder = tmp_path / "run", tmp_path / "training"
    folder.mkdir()
    put(tiny_run, out, {}, folder)
    (out / "torch/fp32").mkdir(parents=True)
    (out / "torch/fp32/model.onnx").write_text("exported")
    (out / "notes.txt").write_text("mine")
    put(tiny_run, out, {"trials": [1]}, folder)
    assert (out / "torch/fp32/model.onnx").read_text() == "exported"
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / ".lock").exists()


def test_a_bundle_of_somebody_else_is_not_replaced(tiny_run, tmp_path):
    out, folder = tmp_path / "run", tmp_path / "training"
    folder.mkdir()
    shutil.copytree(tiny_run, out)
    assert found(out, folder) is None
    with pytest.raises(UsageError, match="it exists already"):
        put(tiny_run, out, {"trials": [1]}, folder)
    (folder / NOTES).write_text("{")
    assert found(out, folder) is None
