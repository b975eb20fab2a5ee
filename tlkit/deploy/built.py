"""By-products of a bundle: what `export` writes below it, recorded in `built.json` and refused once it is stale."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tlkit import files
from tlkit.errors import ArtefactError, DataError
from tlkit.model.bundle import RECORD, Bundle, read_record

BUILT = "built.json"
TARGET, PRECISION = "onnx", "fp32"  # what is opened unless told otherwise
GRAPHS = ("trunk", "head", "model")


def write(
    bundle: Path, target: str, precision: str, facts: Mapping[str, Any], fill: Callable[[Path], Mapping[str, Any]]
) -> Path:
    """Make `bundle/target/precision` whole or not at all; `fill` writes the files and returns more facts."""
    place = bundle / target / precision
    with files.atomic_dir(place, replace=True) as temporary, files.explained(place):
        content = {"target": target, "precision": precision, **facts, **fill(temporary)}
        content["files"] = {file.name: files.sha256(file) for file in sorted(temporary.iterdir())}
        (temporary / BUILT).write_text(json.dumps(content, indent=2) + "\n")
    return place


def found(bundle: Path) -> list[tuple[str, str]]:
    """The (target, precision) of every by-product below a bundle."""
    return sorted((file.parent.parent.name, file.parent.name) for file in bundle.glob(f"*/*/{BUILT}"))


def current(bundle: Bundle) -> bool:
    """Whether the bundle's ONNX graphs are there and are its own."""
    try:
        for graph in GRAPHS:
            graph_file(bundle.root, graph)
    except ArtefactError:
        return False
    return True


def graph_file(path: Path, graph: str, target: str = TARGET, precision: str = PRECISION) -> Path:
    """The file to open: `path` itself, or for a bundle its by-product, checked to belong to it."""
    if not path.exists():
        raise DataError("no such file or bundle", file=path)
    if not path.is_dir():
        return path
    if not (path / RECORD).exists():
        raise ArtefactError(f"neither a graph nor a bundle: it holds no {RECORD}", file=path)
    record = read_record(path)
    again = f"run: tlkit export {files.quoted(path)} --{target}"
    file = next((path / target / precision).glob(f"{graph}.*"), None)
    content = read(path / target / precision, again)
    if content["bundle"] != record["digest"]:
        raise ArtefactError("it was exported from another bundle than this one", file=path / target, do=again)
    if file is None or content["files"].get(file.name) != files.sha256(file):
        raise ArtefactError(f"{graph} is missing or was changed after export", file=path / target / precision, do=again)
    return file


def read(place: Path, again: str) -> dict[str, Any]:
    """The record of a by-product."""
    try:
        content = json.loads((place / BUILT).read_text())
    except FileNotFoundError as error:
        raise ArtefactError("it was not exported yet", file=place, do=again) from error
    except (OSError, ValueError) as error:
        raise ArtefactError(f"can't be read: {error}", file=place / BUILT, do=again) from error
    if not isinstance(content, dict) or not {"bundle", "files"} <= content.keys():
        raise ArtefactError("not the record of an export", file=place / BUILT, do=again)
    return content
