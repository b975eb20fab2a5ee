"""The manifest: sorted and each key once, whatever fits in memory at once."""

from __future__ import annotations

import random

import pytest

from tlkit.embedding import manifest
from tlkit.embedding.manifest import Row, read_rows, write_manifest


@pytest.mark.parametrize(("run", "files"), [(10**6, 100), (40, 100), (40, 2)])
def test_rows_are_sorted_in_runs_that_are_merged(tmp_path, monkeypatch, run, files):
    for name, value in (("ROW_GROUP", 16), ("STORED", 7), ("BATCH", 5), ("RUN", run), ("FILES", files)):
        monkeypatch.setattr(manifest, name, value)
    keys = [f"{number:03}/é{number % 7}.png" for number in range(300)]
    rows = [Row(key, 0, "", number, "v", "") for number, key in enumerate(keys)]
    rows += [Row(keys[5], 1, "", 0, "v", ""), Row(keys[9], 2, "", 0, "v", "empty")]
    random.Random(0).shuffle(rows)
    ticks = []
    assert write_manifest(rows, tmp_path / "manifest.parquet", ticks.append) == sum(ticks) == 302
    found = read_rows(tmp_path / "manifest.parquet", 0, 302)
    assert [(row.key, row.source) for row in found] == sorted((row.key, row.source) for row in rows)
    assert [(row.key, row.problem) for row in found if row.problem] == [
        (keys[5], "another image has the same key"),
        (keys[9], "empty"),
    ]
    assert read_rows(tmp_path / "manifest.parquet", 37, 41) == found[37:41]
