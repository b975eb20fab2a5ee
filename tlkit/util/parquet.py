"""Parquet tables: their text, and whether tlkit wrote them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.util.files import check_own

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def check_parquet(path: Path, key: str) -> None:
    """Refuse to replace a file that is not Parquet with `key` in its metadata."""

    def is_own(path: Path) -> bool:
        from pyarrow import ArrowException, parquet

        try:
            found = parquet.read_schema(path).metadata or {}
        except (ArrowException, ValueError):
            return False
        return key.encode() in found

    check_own(path, is_own)


def strings(values: Iterable[str]) -> Any:
    """Return a column of text; `pa.array` would import pandas if that is installed, for a quarter of a second."""
    import pyarrow as pa

    builder = pa.lib.StringBuilder()
    builder.append_values(list(values))
    return builder.finish()


def utf8(path: str) -> str:
    """Return a path as Parquet can hold it: bytes that are not UTF-8 are escaped, as in caf\\xe9.jpg."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def floats(values: NDArray[np.float32]) -> Any:
    """Return a column with all values of an array, row after row, without a copy."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.float32(), values.size, [None, pa.py_buffer(values)])
