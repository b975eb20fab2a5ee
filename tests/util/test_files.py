"""`.npy` files written row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
