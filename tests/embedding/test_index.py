"""The index: near enough to the exact search, refused where it is not, and where it is of other features or damaged."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import tlkit
from tlkit.embedding import index
from tlkit.embedding.index import ApproximateSearch, place_of
from tlkit.embedding.search import FeatureSet, Transform
from tlkit.errors import ArtifactError, GateError, UsageError


@pytest.fixture(scope="module")
def features(tiny_trunk, pictures, tmp_path_factory):
    """A job, and the record of its index."""
    out = tmp_path_factory.mktemp("index") / "features"
    tlkit.embed(tiny_trunk, pictures, out, settings={"shard_rows": 10})
    return out, tlkit.index(out, k=3)


@pytest.fixture
def copied(features, tmp_path):
    return shutil.copytree(features[0], tmp_path / "features")


def test_it_finds_what_the_exact_search_finds(features, pictures):
    out, record = features
    queries = sorted(pictures.rglob("*.png"))[::7]
    exact, near = (tlkit.search(out, queries, k=3, approximate=each) for each in (False, True))
    assert record.recall >= 0.95
    assert (near.recall, exact.recall) == (record.recall, None)
    assert [hits[0].key for hits in near.hits] == [hits[0].key for hits in exact.hits]
    for one, other in zip(near.hits, exact.hits, strict=True):
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=2e-3)
    assert tlkit.embedding_status(out).complete  # an index is no part of the job


def test_recall_is_the_share_of_the_nearest_that_are_found(features):
    found = FeatureSet(features[0])
    own = np.arange(0, len(found), 5)
    queries = found.take(own)
    exact = found.nearest(queries, 4)
    scores = queries @ found.take(np.arange(len(found))).T
    assert index._recall(np.take_along_axis(scores, exact.rows, 1), exact.rows, own, exact) == 1.0
    wrong = exact.rows.copy()
    wrong[:, 3] = np.argsort(scores, axis=1)[:, 0]
    assert index._recall(np.take_along_axis(scores, wrong, 1), wrong, own, exact) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("metric", "whiten"), [("dot", 0), ("cosine", 3)])
def test_of_a_file_with_a_transform(tiny_trunk, pictures, tmp_path, metric, whiten):
    tlkit.embed(tiny_trunk, pictures, tmp_path / "f.parquet")
    tlkit.index(tmp_path / "f.parquet", k=2, metric=metric, whiten=whiten, min_recall=0.5)
    query = min(pictures.rglob("*.png"))
    given = {"model": tiny_trunk, "metric": metric, "whiten": whiten, "k": 2}
    exact, near = (tlkit.search(tmp_path / "f.parquet", query, approximate=each, **given) for each in (False, True))
    assert near.hits[0][0].score == pytest.approx(exact.hits[0][0].score, rel=3e-3)
    with pytest.raises(UsageError, match=f"its index was made with metric {metric}, power 1.0, whiten {whiten}"):
        ApproximateSearch(FeatureSet(tmp_path / "f.parquet", Transform(metric, power=0.5)))


def test_a_number_of_neighbors_that_makes_no_sense_is_refused(features, pictures):
    with pytest.raises(UsageError, match="k must be at least 1, not 0"):
        tlkit.search(features[0], min(pictures.rglob("*.png")), k=0, approximate=True)


def test_with_too_little_recall_nothing_is_written(copied, monkeypatch):
    shutil.rmtree(place_of(copied))
    monkeypatch.setattr(index, "_recall", lambda *_: 0.7)
    with pytest.raises(GateError, match=r"finds 0.700 of the 10 nearest, less than 0.95"):
        tlkit.index(copied)
    assert not place_of(copied).exists()


def test_what_is_not_its_index_is_refused(copied, features):
    folder = place_of(copied)
    vectors = folder / index.VECTORS
    content = bytearray(vectors.read_bytes())
    content[len(content) // 2] ^= 1
    vectors.write_bytes(content)
    with pytest.raises(ArtifactError, match="the index was changed"):
        ApproximateSearch(FeatureSet(copied))
    record = json.loads((folder / index.RECORD).read_text())
    for change, says in (
        ({"features": "0" * 64}, "the index of other features"),
        ({"format": 2}, "of another version"),
        ({"files": {"../../x": "0"}}, "the index was changed"),
        ({"files": {}}, "the index was changed"),
        ({"recall": "much"}, "not the record of an index: recall"),
    ):
        (folder / index.RECORD).write_text(json.dumps(record | change))
        with pytest.raises(ArtifactError, match=says):
            ApproximateSearch(FeatureSet(copied))
    tlkit.index(copied, k=3)  # what was damaged is replaced
    ApproximateSearch(FeatureSet(copied))
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="tlkit did not write this"):
        tlkit.index(copied)
    assert (folder / "mine.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="there is no index"):
        ApproximateSearch(FeatureSet(shutil.copytree(features[0], copied / "other", ignore=lambda *_: ["_index"])))
    for k in (0, 36):
        with pytest.raises(UsageError, match="k must be 1 to 35"):
            tlkit.index(features[0], k=k)
