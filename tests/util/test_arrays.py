"""Arrays that live in a file above a size: the same values, and nothing left behind."""

from __future__ import annotations

import numpy as np
import pytest

from tlkit.errors import ResourceError
from tlkit.util import arrays
from tlkit.util.files import cache_dir


@pytest.mark.parametrize("in_memory", [2**30, 100])
def test_rows_are_taken_in_any_order(monkeypatch, in_memory):
    monkeypatch.setattr(arrays, "IN_MEMORY", in_memory)
    monkeypatch.setattr(arrays, "CHUNK", 7)
    array = arrays.zeros((50, 3))
    assert not array.any()
    assert isinstance(array.base, np.memmap) == (in_memory == 100)
    array[:] = np.arange(150).reshape(50, 3)
    order = np.random.default_rng(0).permutation(50)
    assert (arrays.take(array, order) == np.arange(150).reshape(50, 3)[order]).all()
    assert np.shares_memory(arrays.take(array, range(3, 20)), array)  # consecutive rows are not copied
    assert arrays.take(array, []).shape == (0, 3)
    assert not list(cache_dir("features").glob("tmp*"))


def test_slices_cover_all_rows(monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", 4)
    for rows in (0, 3, 4, 9):
        covered = np.concatenate([np.arange(rows)[part] for part in arrays.slices(rows)])
        assert covered.tolist() == list(range(rows))


def test_space_that_is_not_there_is_refused_before_the_work(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays.os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(arrays, "IN_MEMORY", 0)
    with pytest.raises(ResourceError, match="can't write: no space left on device; free some space"):
        arrays.zeros((5, 5))
