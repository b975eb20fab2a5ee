"""Cached graphs: files of this machine whose names end in the hash of their content, which is checked before use."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx

from tlkit.errors import TlkitWarning
from tlkit.util.files import atomic_file, cache_dir

_HASH = 16  # characters of the SHA-256 in a name
_intact: dict[Path, tuple[int, int]] = {}  # size and time of the files that this process has checked


def cached_graph(key: str, make: Callable[[], onnx.ModelProto]) -> Path:
    """Return the file of a graph, made once per machine; `key` names everything that decides what it computes.

    A file that is damaged is removed and made again, with a warning.
    """
    folder = cache_dir("graphs")
    for file in sorted(folder.glob(f"{key}.{'?' * _HASH}.onnx")):
        if _is_intact(file):
            return file
        warnings.warn(f"{file}: a cached graph was damaged and is made again", TlkitWarning, stacklevel=2)
        file.unlink(missing_ok=True)
    content = make().SerializeToString()
    file = folder / f"{key}.{_hash(content)}.onnx"
    with atomic_file(file) as temporary:
        temporary.write_bytes(content)
    return file


def _is_intact(file: Path) -> bool:
    try:
        found = file.stat()
        if _intact.get(file) != (found.st_size, found.st_mtime_ns):
            if _hash(file.read_bytes()) != file.stem.rpartition(".")[2]:
                return False
            _intact[file] = found.st_size, found.st_mtime_ns
    except OSError:
        return False
    return True


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_HASH]
