"""Search: the same neighbors as a brute force, whatever the blocks, from jobs and files, with a page."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import tlkit
from tlkit.embedding import search
from tlkit.embedding.search import FeatureSet, Transform
from tlkit.errors import ArtifactError, DataError, UsageError
from tlkit.util.statistics import unit


@pytest.fixture(scope="module")
def job(tiny_trunk, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("search") / "features"
    tlkit.embed(tiny_trunk, pictures, out, settings={"shard_rows": 10})
    return out


@pytest.fixture(scope="module")
def rows(tiny_trunk, pictures):
    """All features, in the order of the keys."""
    return tiny_trunk.embed(sorted(pictures.rglob("*.png")))


@pytest.mark.parametrize("block", [1, 7, 8192])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_it_is_exact(job, rows, monkeypatch, block, metric):
    monkeypatch.setattr(search, "BLOCK", block)
    found = FeatureSet(job, Transform(metric)).search(rows[::5], 4)
    scores = unit(rows[::5]) @ unit(rows).T if metric == "cosine" else rows[::5] @ rows.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :4]
    assert np.allclose(found.scores, np.take_along_axis(scores, best, 1), atol=1e-5)
    assert (found.rows == best).mean() > 0.9  # others are ties
    assert found.scores.shape == (8, 4)


def test_ties_go_to_the_first_row():
    scores = np.array([[1, 3, 3, 3, 2]], np.float32)
    assert search._best(scores, 2).tolist() == [[1, 2]]
    assert search._best(scores, 9).tolist() == [[0, 1, 2, 3, 4]]


def test_memory_is_bounded_where_the_features_do_not_fit(job, rows, monkeypatch):
    kept = FeatureSet(job)
    assert kept.search(rows[:2], 3).rows.tolist() == kept.search(rows[:2], 3).rows.tolist()
    assert kept._kept is not None
    monkeypatch.setattr(search, "KEPT", 100)
    streamed = FeatureSet(job)
    assert streamed.search(rows[:2], 3).rows.tolist() == kept.search(rows[:2], 3).rows.tolist()
    assert streamed._kept is None


def test_whitened_components_have_variance_one(job, rows):
    found = FeatureSet(job, Transform("dot", power=0.5, whiten=4))
    (block,) = [np.concatenate([each.rows for each in found.blocks()])]
    assert np.allclose(np.cov(block, rowvar=False), np.eye(4), atol=0.02)
    assert np.allclose(block.mean(0), 0, atol=1e-4)
    assert found.search(rows[:3], 1).rows.tolist() != [[]]
    with pytest.raises(UsageError, match="whiten must be at most the 8 features, not 9"):
        FeatureSet(job, Transform(whiten=9))


def test_a_query_finds_itself_and_a_page_shows_it(job, pictures, tmp_path):
    queries = sorted(pictures.rglob("*.png"))[::13]
    result = tlkit.search(job, queries, k=3, html=tmp_path / "hits.html")
    assert [hits[0].key for hits in result.hits] == [file.relative_to(pictures).as_posix() for file in queries]
    assert [hits[0].score for hits in result.hits] == pytest.approx([1.0] * len(queries), abs=1e-5)
    page = (tmp_path / "hits.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(queries) * 4
    assert "default-src 'none'" in page
    assert "http:" not in page
    assert "https:" not in page
    assert result.to_json()["rows"] == 36
    assert repr(result).splitlines()[0] == str(queries[0])
    (tmp_path / "other.html").write_text("mine")
    with pytest.raises(UsageError, match="tlkit did not write this file"):
        tlkit.search(job, queries, html=tmp_path / "other.html")


@pytest.mark.parametrize(
    ("column", "change", "says"),
    [
        ("features", lambda _: [[np.nan] * 8] * 36, "not finite"),
        ("features", lambda _: [[np.inf] + [0] * 7] * 36, "not finite"),
        ("features", lambda rows: [row[: 8 - number % 2] for number, row in enumerate(rows)], "can't be read"),
        ("features", lambda rows: [*rows[:-1], None], "can't be read"),
        ("features", lambda _: pa.array([None] * 36, pa.list_(pa.float32())), "no lists of floats"),
        ("features", lambda _: ["text"] * 36, "no lists of floats"),
        ("features", lambda _: [["text"]] * 36, "no lists of floats"),
        ("key", None, "no column key"),
        (None, None, "no rows"),
    ],
)
def test_features_that_are_none_are_refused(job, tmp_path, column, change, says):
    table = parquet.read_table(job)
    if change is not None:
        values = change(table[column].to_pylist())
        table = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
    table = table.drop_columns([column]) if column == "key" else table if column else table.slice(0, 0)
    parquet.write_table(
        table.replace_schema_metadata(parquet.read_schema(job / "part-00000.parquet").metadata), tmp_path / "f.parquet"
    )
    with pytest.raises((ArtifactError, DataError), match=says):
        FeatureSet(tmp_path / "f.parquet").search(np.ones((1, 8), np.float32))


def test_a_file_needs_its_model(tiny_trunk, pictures, own_run, tmp_path):
    tlkit.embed(tiny_trunk, pictures, tmp_path / "f.parquet")
    query = min(pictures.rglob("*.png"))
    ((hit,),) = tlkit.search(tmp_path / "f.parquet", query, model=tiny_trunk, k=1).hits
    assert str(query).endswith(hit.key)
    with pytest.raises(UsageError, match="name it with --model"):
        tlkit.search(tmp_path / "f.parquet", query)
    with pytest.raises(DataError, match="neither a job of features nor a file of them"):
        tlkit.search(tmp_path / "nothing", query, model=tiny_trunk)
    (tmp_path / "f.npy").touch()
    with pytest.raises(UsageError, match="has no names of images"):
        tlkit.search(tmp_path / "f.npy", query, model=tiny_trunk)
    found = FeatureSet(tmp_path / "f.parquet")
    with pytest.raises(ArtifactError, match="its features were made by another model"):
        found.check_model({**found.metadata, "tlkit.bundle": "0" * 64}, own_run)
    with pytest.raises(UsageError, match=r"the queries have the shape \(2, 3\), not \(N, 8\)"):
        found.search(np.zeros((2, 3), np.float32))
