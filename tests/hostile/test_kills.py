"""A writer that is killed before any of its steps loses nothing and is in nobody's way: the next run just works."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.kit.exporting import exported, replayed
from tests.kit.hostile import everybody_gone, states
from tests.kit.tiny import Line, Tiny
from tlkit.errors import ArtifactError
from tlkit.exporting.shared_trunk import export_shared_trunk
from tlkit.exporting.triton import export_triton
from tlkit.model import exports
from tlkit.model.bundle import open_bundle
from tlkit.model.exports import Exports, read_manifest
from tlkit.pages import html
from tlkit.runtime.embedding import embed
from tlkit.runtime.model import Model
from tlkit.training.checkpoint import Checkpoint, Checkpoints
from tlkit.training.run import train
from tlkit.util.files import atomic_file
from tlkit.util.locks import claim


def names(root):
    """Everything below a folder that a finished run may leave."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def rewrite(run, made_by="before"):
    """An export again, from its own graphs."""
    folder = run / "onnx/fp32"
    graphs = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != exports.MANIFEST}
    facts = {key: value for key, value in read_manifest(folder, "").items() if key != "files"}

    def fill(place):
        for name, content in graphs.items():
            (place / name).write_bytes(content)
        return {"made_by": made_by}

    with claim(run, inside=True):
        exports.write_export(folder, "onnx", "fp32", facts, fill)


@pytest.mark.parametrize("way", ["exchange", "aside"])
def test_an_export_is_the_one_before_or_the_new_one(own_run, tmp_path, monkeypatch, way):
    if way == "aside":
        monkeypatch.setattr("tlkit.util.temporaries.exchange", lambda _one, _other: False)
    rewrite(own_run)
    whole = names(own_run)
    left = states(own_run, lambda: rewrite(own_run, "after"), tmp_path / "states")
    assert len(left) >= 10
    seen = set()
    for run in left:
        with everybody_gone():
            assert Exports.of(open_bundle(run)).names() == [("onnx", "fp32")]
            assert replayed(run).passed
            seen.add(read_manifest(run / "onnx/fp32", "")["made_by"])
            rewrite(run, "again")
        assert names(run) == whole
        assert read_manifest(run / "onnx/fp32", "")["made_by"] == "again"
    assert seen == {"before", "after"}


def test_the_first_export_is_there_or_not_and_can_be_made(own_run, tmp_path):
    whole = names(own_run)
    kept = (own_run / "onnx").rename(tmp_path / "kept")
    facts = {key: value for key, value in read_manifest(kept / "fp32", "").items() if key != "files"}

    def fill(place):
        for file in kept.glob("fp32/*"):
            if file.name != exports.MANIFEST:
                shutil.copyfile(file, place / file.name)
        return {}

    def write(run):
        with claim(run, inside=True):
            exports.write_export(run / "onnx/fp32", "onnx", "fp32", facts, fill)

    left = states(own_run, lambda: write(own_run), tmp_path / "states")
    assert len(left) >= 5
    for run in left:
        with everybody_gone():
            found = Exports.of(open_bundle(run))
            if found.names():
                assert replayed(run).passed
            else:
                with pytest.raises(ArtifactError, match="not exported yet"):
                    found.get()
            write(run)
        assert names(run) == whole


def test_a_bundle_is_whole_or_not_there(pictures, tiny_config, tmp_path):
    place = tmp_path / "place"

    def run(at):
        with claim(at / "run"):
            train(pictures, at / "run", tiny_config)

    place.mkdir()
    left = states(place, lambda: run(place), tmp_path / "states")
    whole, missing = names(place), []
    for state in left:
        if (state / "run").exists():
            open_bundle(state / "run")
        else:
            missing.append(state)
    assert len(missing) >= 5, [names(state) for state in left]
    for state in (missing[1], missing[-1]):
        with everybody_gone():
            run(state)
        assert names(state) == whole


@pytest.mark.parametrize("name", ["f.npy", "f.parquet"])
@pytest.mark.parametrize("before", [False, True])
def test_features_are_whole_or_those_before(tiny_run, pictures, tmp_path, name, before):
    model, files = Model.open(tiny_run / "onnx/fp32/trunk.onnx", graph="trunk"), sorted(pictures.rglob("*.png"))[:6]
    place = tmp_path / "place"
    place.mkdir()

    def run(at):
        with claim(at / name):
            embed(model, files, at / name, lambda _: None)

    if before:
        run(place)
    left = states(place, lambda: run(place), tmp_path / "states")
    whole, content = names(place), (place / name).read_bytes()
    for state in left:
        if (state / name).exists():
            assert (state / name).read_bytes() == content
        with everybody_gone():
            run(state)
        assert names(state) == whole
        assert (state / name).read_bytes() == content


def test_checkpoints_are_whole_and_one_is_always_there(tmp_path):
    import torch

    place = tmp_path / "place"
    place.mkdir()
    kept = Checkpoints(place, warn=pytest.fail)

    def save():
        for epoch in (2, 3, 4):
            kept.save(Checkpoint(0, epoch, 0, 1.0, [], {"a": torch.full((3,), float(epoch))}))

    kept.save(Checkpoint(0, 1, 0, 1.0, [], {"a": torch.ones(3)}))
    found = [Checkpoints(state, warn=pytest.fail).newest().epoch for state in states(place, save, tmp_path / "states")]
    assert set(found) == {1, 2, 3, 4}
    assert found == sorted(found)


def test_a_page_is_whole_or_the_one_before(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    page = place / "advice.html"
    page.write_text(f"{html.MARK} before")

    def write(at, text):
        with claim(at), atomic_file(at, check=html.check) as temporary:
            temporary.write_text(f"{html.MARK} {text}")

    left = states(place, lambda: write(page, "after"), tmp_path / "states")
    assert {(state / page.name).read_text().split()[-1] for state in left} == {"before", "after"}
    for state in left:
        with everybody_gone():
            write(state / page.name, "again")
        assert names(state) == ["advice.html"]


@pytest.mark.parametrize("kind", ["shared trunk", "Triton"])
def test_what_serves_several_bundles_is_whole_in_each_part(tiny_run, tmp_path, kind):
    place, write = tmp_path / "place", export_triton if kind == "Triton" else export_shared_trunk
    place.mkdir()

    def run(at):
        with claim(at / "out"):
            write([open_bundle(tiny_run)], at / "out")

    run(place)
    whole = names(place)
    left = states(place, lambda: run(place), tmp_path / "states")
    for state in left[:: max(1, len(left) // 6)]:
        assert set(whole) <= set(names(state))
        with everybody_gone():
            run(state)
        assert names(state) == whole


def test_the_verb_itself_leaves_one_lock_and_no_more(own_run, tmp_path):
    """The whole of `export`, with its gate: as many leftovers as one run makes."""
    left = states(own_run, lambda: exported(own_run, Tiny(), Line()), tmp_path / "states")
    for run in left:
        extra = {name.split(os.sep)[-1] for name in names(run) if ".part" in name.rpartition(os.sep)[2]}
        assert len(extra) <= 1
