"""Parquet tables: their columns, and whether tlkit wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.errors import require
from tlkit.util.files import check_own

if TYPE_CHECKING:
    from numpy.typing import NDArray


def require_pyarrow(file: Path | str) -> None:
    """Raise a ResourceError that names the command to install pyarrow, if it is missing."""
    require("pyarrow", "reading and writing Parquet", file)


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


def numbers(values: NDArray[Any]) -> Any:
    """Return a column with all values of an array, row after row, without a copy."""
    import numpy as np
    import pyarrow as pa

    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.Array.from_buffers(pa.from_numpy_dtype(flat.dtype), len(flat), [None, pa.py_buffer(flat)])


def vectors(rows: NDArray[Any], *, fixed: bool = True) -> Any:
    """Return a column of the rows of an array `(N, width)`: lists of fixed size, or lists that more readers know."""
    import numpy as np
    import pyarrow as pa

    if fixed:
        return pa.FixedSizeListArray.from_arrays(numbers(rows), rows.shape[1])
    return pa.ListArray.from_arrays(numbers(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]), numbers(rows))


def binaries(values: Sequence[bytes]) -> Any:
    """Return a column of bytes."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)
