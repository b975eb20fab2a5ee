"""Distributions that one process finds on its path, as if they were installed; nothing is installed."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HIDING = """
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}
find_spec = PathFinder.find_spec


def find_unhidden(name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else find_spec(name, path, target)


PathFinder.find_spec = staticmethod(find_unhidden)
"""


def install(
    site: Path, distribution: str, source: str, points: str | None = None, requires: Sequence[str] = ()
) -> None:
    """A distribution as pip leaves it: its module, its metadata, its entry points."""
    module = distribution.replace("-", "_")
    site.joinpath(f"{module}.py").write_text(source)
    describe(site, distribution, points or f"[tlkit]\n{distribution} = {module}\n", requires=requires)


def install_project(site: Path, folder: Path) -> None:
    """The files that a wheel of the project in `folder` would hold by its `pyproject.toml`, and its metadata."""
    content = tomllib.loads((folder / "pyproject.toml").read_text())
    project = content["project"]
    wheel = content["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in wheel.get("only-include") or wheel["packages"]:
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
        copy(folder / name, site / name)
    describe(site, project["name"], entry_points(project), project["version"], project["dependencies"])


def entry_points(project: Mapping[str, Any]) -> str:
    """The `entry_points.txt` of a project, from the `[project]` table of its `pyproject.toml`."""
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {module}" for name, module in points.items()))
    ]
    return "\n".join(lines) + "\n"


def describe(site: Path, distribution: str, points: str, version: str = "1.0", requires: Sequence[str] = ()) -> None:
    """The metadata alone, of a distribution whose modules are on the path already."""
    folder = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    folder.joinpath("METADATA").write_text("\n".join(lines) + "\n")
    folder.joinpath("entry_points.txt").write_text(points)


def hide(site: Path, packages: Collection[str]) -> dict[str, str]:
    """The environment of a process in which `packages` can't be found, as if they were not installed."""
    at_start(site, HIDING.format(hidden=set(packages)))
    return {"PYTHONPATH": str(site)}


def at_start(site: Path, source: str) -> None:
    """Have every Python process with `site` on its PYTHONPATH run `source` first."""
    site.joinpath("sitecustomize.py").write_text(source)


def beyond(distribution: str) -> set[str]:
    """The packages that are installed here and that installing `distribution`, without extras, doesn't bring."""
    brought = _brought_by(distribution)
    owners = metadata.packages_distributions()
    return {package for package, names in owners.items() if brought.isdisjoint(map(canonicalize_name, names))}


def _brought_by(distribution: str) -> set[str]:
    brought: set[str] = set()
    todo = [distribution]
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in brought:
            brought.add(name)
            needed = map(Requirement, metadata.requires(name) or ())
            todo += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return brought
