"""Opening what was built for a target: not on a machine it was not built for, and no stranger's code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from tlkit.errors import ArtifactError
from tlkit.model import exports
from tlkit.plugin.contract import Session, Target
from tlkit.plugin.options import from_json
from tlkit.util import files

MADE_HERE = "engines"  # in the cache: the hashes of executable files that were built on this machine


class IncompatibleEngine(ArtifactError):
    """A file that was built for another machine, or on one that nobody here knows."""


def open_target(target: Target, file: Path, *, trust: bool = False) -> Session:
    """Open a file of a by-product, which says in its record what it was built for.

    An engine is executable code: unless it was built on this machine, `trust` says that it may run.
    """
    record = exports.read(file.parent, again="export it again")
    again = exports.command(file.parents[2], target.name, file.parent.name)
    if target.executable and not trust and not _made_here(file):
        what = f"a file of {target.name} is executable code, and this one was not built on this machine"
        raise IncompatibleEngine(what, file=file, do=f"{again}; or, if you trust it, add --trust-engine")
    built_on: Mapping[str, str] = record.get("machine", {})
    if built_on and (why := from_json(target, record.get("options", {})).incompatible(built_on)) is not None:
        raise IncompatibleEngine(why, file=file, do=again)
    session = target.open(file)
    if not session.metadata:  # a format that keeps none: what the graph said that it was built from
        session.metadata = record.get("metadata", {}).get(file.stem, {})
    return session


def remember(target: Target, place: Path) -> None:
    """Note that the executable files of a by-product were built on this machine."""
    if target.executable:
        for file in place.glob(f"*{target.suffix}"):
            (files.cache_dir(MADE_HERE) / files.sha256(file)).touch()


def facts(target: Target, graphs: Mapping[str, Path]) -> dict[str, Any]:
    """What the record of a by-product says for `open_target`."""
    metadata = {
        name: {prop.key: prop.value for prop in onnx.load_model(graph, load_external_data=False).metadata_props}
        for name, graph in graphs.items()
    }
    return {"metadata": metadata} if target.executable else {}


def _made_here(file: Path) -> bool:
    return (files.cache_dir(MADE_HERE) / files.sha256(file)).exists()
