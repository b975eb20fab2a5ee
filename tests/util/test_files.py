"""`.npy` files written row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tlkit.errors import ResourceError
from tlkit.util import files
from tlkit.util.files import NpyWriter


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_appended_are_the_array(tmp_path: Path, dtype: str) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(dtype)
    file = tmp_path / "a.npy"
    with file.open("wb") as stream:
        writer = NpyWriter(stream, (2, 3), dtype)
        writer.write(rows[:4])
        writer.write(rows[4:])
        writer.close()
    assert np.array_equal(np.load(file, mmap_mode="r"), rows)
    assert np.load(file).dtype == rows.dtype


def test_without_a_home_the_cache_names_what_to_set(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("could not determine the home directory")  # as newer versions of platformdirs do

    monkeypatch.delenv(files.CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(files.platformdirs, "user_cache_dir", fail)
    with pytest.raises(ResourceError, match="no home directory for the cache; set TLKIT_CACHE"):
        files.cache_dir()
