"""Features in a file: in order, written atomically, with their provenance."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tlkit.errors import DataError, ResourceError, UsageError
from tlkit.runtime import embedding
from tlkit.runtime.embedding import embed
from tlkit.runtime.model import Model


@pytest.fixture
def files(pictures):
    return sorted(pictures.rglob("*.png"))


@pytest.fixture
def model(tiny_run):
    return Model.open(tiny_run, graph="trunk")


def quiet(_more):
    return None


@pytest.mark.parametrize("row_group", [1, 10, 1024])
def test_parquet(model, pictures, files, tmp_path, monkeypatch, row_group):
    monkeypatch.setattr(embedding, "ROW_GROUP", row_group)
    result = embed(model, files, tmp_path / "f.parquet", quiet)
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.schema.field("features").type == pa.list_(pa.float32(), 8)
    assert (result.rows, result.width, result.rejected) == (36, 8, {})
    assert table["path"].to_pylist() == [file.relative_to(pictures).as_posix() for file in files]
    assert table["sha256"].to_pylist() == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    features = table["features"].combine_chunks().flatten().to_numpy().reshape(-1, 8)
    assert np.allclose(features, model.embed(files), atol=1e-6)
    facts = table.schema.metadata
    assert facts[b"tlkit.bundle"].decode() == model.session.metadata["tlkit.bundle"]


def test_npy_and_its_table(model, pictures, files, tmp_path):
    embed(model, files, tmp_path / "f.npy", quiet)
    features = np.load(tmp_path / "f.npy")
    assert (features.shape, features.dtype) == ((36, 8), np.float32)
    assert np.allclose(features, model.embed(files), atol=1e-6)
    with (tmp_path / "f.npy.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["path"] for row in rows] == [file.relative_to(pictures).as_posix() for file in files]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (["/data/jane/photos"], {"/data/jane/photos/cats/1.png": "photos/cats/1.png"}),
        (["/data/jane/trip/../photos/"], {"/data/jane/trip/../photos/1.png": "photos/1.png"}),
        (["/data/jane/a.png"], {"/data/jane/a.png": "a.png"}),
        (
            ["/data/jane/x/1.png", "/data/jane/y/1.png"],
            {"/data/jane/x/1.png": "x/1.png", "/data/jane/y/1.png": "y/1.png"},
        ),
        (["photos", "../1.png"], {"photos/1.png": "photos/1.png", "../1.png": "../1.png"}),
        (["photos", "/data/jane/1.png"], {"photos/1.png": "photos/1.png", "/data/jane/1.png": "1.png"}),
    ],
)
def test_no_absolute_path_is_written(given, written):
    name = embedding.naming([Path(each) for each in given])
    assert {path: name(path) for path in written} == written


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
def test_rejects_stand_beside(model, files, tmp_path, suffix):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    out = tmp_path / f"f.{suffix}"
    result = embed(model, [files[0], broken, files[1]], out, quiet, [files[0].parent, broken.parent])
    assert (result.rows, list(result.rejected)) == (2, [str(broken)])
    with (tmp_path / f"f.{suffix}.rejects.csv").open(newline="") as table:
        (row,) = csv.DictReader(table)
    assert row["path"].endswith(f"{tmp_path.name}/broken.jpg")
    assert not row["path"].startswith("/")
    embed(model, files[:2], out, quiet)
    assert not (tmp_path / f"f.{suffix}.rejects.csv").exists()


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
def test_nothing_usable_writes_nothing(model, tmp_path, suffix):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 1 images"):
        embed(model, [broken], tmp_path / f"f.{suffix}", quiet)
    assert [file.name for file in tmp_path.iterdir()] == ["broken.jpg"]


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
def test_an_interrupted_run_leaves_the_old_result(model, files, tmp_path, suffix):
    out = tmp_path / f"f.{suffix}"
    embed(model, files, out, quiet)
    before = out.read_bytes()

    def interrupt(_more):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(model, files[:8], out, interrupt)
    assert out.read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".part")]


def test_other_formats_are_refused(model, files, tmp_path):
    with pytest.raises(UsageError, match=r"\.parquet or \.npy"):
        embed(model, files, tmp_path / "f.csv", quiet)


def test_a_missing_pyarrow_names_the_command(model, files, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ResourceError, match=r'pip install "tlkit\[parquet\]"'):
        embed(model, files, tmp_path / "f.parquet", quiet)


def test_every_image_ticks_once(model, files, tmp_path):
    ticks: list[int] = []
    embed(model, files, tmp_path / "f.npy", ticks.append)
    assert sum(ticks) == len(files)
