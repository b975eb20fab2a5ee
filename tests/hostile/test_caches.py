"""Damaged caches are never learned from: what fails its checksum is computed again, with one warning."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
import warnings

import numpy as np
import pytest

from tests.kit.hostile import mutate
from tests.kit.tiny import WIDTHS, Tiny
from tlkit.errors import TlkitWarning
from tlkit.graph import cache as graph_cache
from tlkit.graph import trace
from tlkit.model import trunk as trunks
from tlkit.runtime.feature_cache import RECENT_NS
from tlkit.runtime.features import extract
from tlkit.training.run_directory import once

IMAGES = 12


@pytest.fixture(scope="module")
def made(pictures, tmp_path_factory):
    """A warm cache: the folder, the images, and the features that an intact cache gives."""
    root = tmp_path_factory.mktemp("made")
    files = sorted(pictures.rglob("*.png"))[:IMAGES]
    (root / "photos").mkdir()
    photos = [root / f"photos/{number}.png" for number in range(IMAGES)]
    for file, photo in zip(files, photos, strict=True):
        shutil.copyfile(file, photo)
    time.sleep(2 * RECENT_NS / 1e9)  # old enough to be trusted
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKIT_CACHE", str(root / "cache"))
        features = run(photos, trace.stage_graph(trunks.build(Tiny())))[0]
    return root, photos, features.array


@pytest.fixture
def damaged(made, tmp_path, monkeypatch):
    """A copy of the warm cache: its database and its graph."""
    root, _, _ = made
    shutil.copytree(root / "cache", tmp_path / "cache")
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(graph_cache, "_intact", {})
    graph = next(file for file in tmp_path.glob("cache/graphs/*.onnx") if "-architecture." not in file.name)
    return next(tmp_path.glob("cache/features/*.sqlite")), graph


def run(photos, graph):
    """Features, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        features = extract(photos, graph, Tiny.preprocessing, tuple(WIDTHS), "third", lambda _: None)
    return features, [str(each.message) for each in said if issubclass(each.category, TlkitWarning)]


def check(made, graph, *, decoded=None):
    """The features are right, one line says what happened, and the next run finds nothing wrong."""
    _, photos, expected = made
    for repeated in (False, True):
        features, said = run(photos, graph)
        assert np.allclose(features.array, expected, atol=1e-5)
        assert features.usable.all()
        if repeated:
            assert not said
            assert decoded is None or features.decoded == 0  # a damaged index may lose a row again
        elif decoded is not None:
            assert features.decoded == decoded
            assert len(said) == 1
            assert "of the feature cache was damaged and is computed again" in said[0]
        assert len(said) <= 1
    return features


NAMES = {
    "ROW_OF_OTHER": "(SELECT row, checksum FROM features WHERE sha256 = OTHER)",
    "SOME": "(SELECT min(sha256) FROM features)",
    "OTHER": "(SELECT max(sha256) FROM features)",
}


@pytest.mark.parametrize(
    ("command", "decoded"),
    [
        ("UPDATE features SET row = substr(row, 1, 8) || x'80' || substr(row, 10) WHERE sha256 = SOME", 1),
        ("UPDATE features SET row = (SELECT row FROM features WHERE sha256 = OTHER) WHERE sha256 = SOME", 1),
        ("UPDATE features SET (row, checksum) = ROW_OF_OTHER WHERE sha256 = SOME", 1),
        ("UPDATE files SET sha256 = OTHER WHERE sha256 = SOME", 1),
        ("UPDATE features SET row = substr(row, 1, 16) WHERE sha256 = SOME", 1),
        ("UPDATE features SET row = row || row", IMAGES),
        ("UPDATE features SET row = 7", IMAGES),
        ("UPDATE features SET row = NULL, checksum = NULL", IMAGES),
        ("UPDATE features SET checksum = 'text'", IMAGES),
        ("UPDATE files SET identity = CAST(x'ff00fe' AS TEXT)", IMAGES),
        ("UPDATE facts SET widths = replace(widths, '8', '7')", 0),
        ("UPDATE facts SET widths = '['", 0),
        ("UPDATE facts SET widths = x'00'", 0),
        ("DROP TABLE files; CREATE TABLE files(path)", IMAGES),
    ],
    ids=str,
)
def test_a_row_that_is_not_what_was_written_is_computed_again(made, damaged, command, decoded):
    file, graph = damaged
    for name, query in NAMES.items():
        command = command.replace(name, query)
    with sqlite3.connect(file) as db:
        db.executescript(command)
    db.close()
    check(made, graph, decoded=decoded)


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + bytes(5000)])
def test_what_is_no_database_is_begun_again(made, damaged, content):
    file, graph = damaged
    file.write_bytes(content)
    check(made, graph, decoded=IMAGES)


def test_an_error_that_quotes_bytes_that_are_no_text_is_one(made, damaged):
    file, graph = damaged
    with sqlite3.connect(file) as db:  # the schema is in the file itself then, not in its log
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    content = file.read_bytes()
    schema = b"tablefactsfacts\x02CREATE TABLE"
    assert content.count(schema) == 1, content[:1000]
    file.write_bytes(content.replace(schema, b"tablef\x8cctsfacts\x02CREATE TOBLE"))
    check(made, graph)


@pytest.mark.parametrize("seed", range(40))
def test_a_mutated_database_gives_the_same_features(made, damaged, seed):
    file, graph = damaged
    file.write_bytes(mutate(file.read_bytes(), random.Random(seed)))
    check(made, graph)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_graph_is_made_again(damaged, seed):
    """Training again used to repeat it: the graph has to be whole after the first run."""
    _, graph = damaged
    content = graph.read_bytes()
    graph.write_bytes(mutate(content, random.Random(seed)))
    trunk = trunks.build(Tiny())
    with pytest.warns(TlkitWarning, match="a cached graph was damaged and is made again"):
        assert trace.stage_graph(trunk) == graph
    assert graph.read_bytes() == content
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trace.stage_graph(trunk) == graph


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"value": 2}', '{"checksum": 1, "value": 2}', "[" * 99999, "\udcff"]
)
def test_a_damaged_record_is_computed_again(tmp_path, content):
    file = tmp_path / "record.json"
    assert once(file, lambda: [1, 0.5]) == ([1, 0.5], True)
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.warns(TlkitWarning, match="a record was damaged and is computed again"):
        assert once(file, lambda: [2, 0.5]) == ([2, 0.5], True)
    file.write_text(file.read_text().replace("0.5", "0.25"))
    with pytest.warns(TlkitWarning):
        assert once(file, lambda: [3]) == ([3], True)
    assert once(file, lambda: [4]) == ([3], False)
