"""The parts of a component: its name, its options, and the sources of the distribution that provides it.

Everything derived from a component is kept under these: an option that only `forward` reads, or a second file of a
plugin, changes what is computed as much as a weight does.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tlkit.plugin.contract import Component, option_fields
from tlkit.plugin.discovery import declares
from tlkit.plugin.hooks import NAMESPACE
from tlkit.plugin.options import to_json

HASHED = 2**20  # bytes; of larger files, size and time stand for the content: weights are hashed where they are loaded


def identity(component: Component) -> dict[str, Any]:
    """Return the name of a component, its options and the hash of its sources, as JSON."""
    kind = type(component)
    more: dict[str, Any] = {"class of the component": kind.__qualname__}
    more |= {"sources of the plugin": sources(kind.__module__)}
    if files := named_files(component):
        more |= {"files that options name": files}
    return {"name": component.name, **to_json(component, local=True), **more}  # names that no option can have


def named_files(component: Component) -> dict[str, str]:
    """Return a hash (hex) of each small file that an option names: it may hold options. Large ones hold weights."""
    values = {field.name: getattr(component, field.name) for field in option_fields(component)}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for name, path in values.items()
        if isinstance(path, Path) and path.is_file() and path.stat().st_size <= HASHED
    }


def sources(module: str) -> str:
    """Return a hash (hex) of all files of the distribution that a module comes from, as they are at the first call.

    Files that are edited later take effect in the next process, as the code that was imported does.
    """
    return _sources(module.partition(".")[0])


@functools.cache
def _sources(top: str) -> str:
    digest = hashlib.sha256()
    for name, file in sorted(_files(top)):
        try:
            if (found := file.stat()).st_size > HASHED:
                content = f"{found.st_size} {found.st_mtime_ns}".encode()
            else:
                content = file.read_bytes()
        except OSError:  # listed and not there
            continue
        digest.update(f"{name}\0{len(content)}\0".encode("utf-8", "surrogateescape") + content)
    return digest.hexdigest()[:16]


def _files(top: str) -> set[tuple[str, Path]]:
    """Return the files of a top-level module, each with a name that does not depend on where it is installed."""
    module = sys.modules.get(top)
    found = set[tuple[str, Path]]()
    for folder in map(Path, getattr(module, "__path__", ())):
        found |= {(f"{top}/{file.relative_to(folder).as_posix()}", file) for file in _below(folder)}
    if not found and (place := getattr(module, "__file__", None)):
        found |= {(file.name, file) for file in _beside(Path(place))}
    return found | _installed(top)


def _installed(top: str) -> set[tuple[str, Path]]:
    """Return the files that the installer recorded for the plugin that a module belongs to."""
    for distribution in metadata.distributions():
        if not declares(distribution, NAMESPACE):
            continue
        try:
            files = {str(file): file for file in distribution.files or () if file.suffix not in (".pyc", ".pth")}
        except Exception:  # noqa: BLE001, S112  # a record may be malformed in many ways
            continue
        if any(name.startswith(f"{top}/") or name == f"{top}.py" for name in files):
            return {(name, Path(str(file.locate()))) for name, file in files.items() if ".dist-info/" not in name}
    return set()


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.endswith(".pyc"))


def _beside(file: Path) -> Iterator[Path]:
    """Yield a module and, unless many distributions share the folder, the modules that lie beside it."""
    yield file
    if file.parent.name not in ("site-packages", "dist-packages"):
        yield from file.parent.glob("*.py")
