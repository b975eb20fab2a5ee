"""Arrays of any number of rows: those that are large live in a file, which the system reads and drops as it needs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tlkit.util.files import cache_dir, translate_os_errors

IN_MEMORY = 2**29  # bytes; a larger array is a file
CHUNK = 4096  # rows that are worked on at once


def zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return an array of zeros: above `IN_MEMORY` a file in the cache without a name, which goes with the array.

    Its space is reserved, as a full disk would end a process that writes to a mapped file. Raises ResourceError.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return np.zeros(shape, dtype)
    folder = cache_dir("features")
    with translate_os_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.asarray(np.memmap(file, dtype, "r+", shape=shape))


def take(array: NDArray[Any], rows: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
    """Return some rows, in this order: a view if they are consecutive, and of a large array a file if they are many."""
    rows = np.asarray(rows, np.int64)
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return array[rows[0] : rows[-1] + 1]
    taken = zeros((len(rows), *array.shape[1:]), array.dtype)
    for part in slices(len(rows)):
        taken[part] = array[rows[part]]
    return taken


def slices(rows: int) -> Iterator[slice]:
    """Yield slices that cover so many rows, `CHUNK` in each; one that is empty for none."""
    return (slice(start, min(start + CHUNK, rows)) for start in range(0, max(1, rows), CHUNK))
