"""The tiny components as a plugin that a process finds on its path, as an installed one is found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tests.kit.distribution import describe
from tests.kit.tiny import Line, Tiny
from tlkit.plugin.contract import Backbone, Head
from tlkit.plugin.hooks import hookimpl

ROOT = Path(__file__).resolve().parents[2]


@hookimpl
def tlkit_backbones() -> list[Backbone]:
    return [Tiny()]


@hookimpl
def tlkit_heads() -> list[Head]:
    return [Line()]


def empty_cache(place: Path) -> Path:
    """Make a cache that is empty but for the graphs of the surrounding one, whose tracing takes seconds."""
    place.mkdir(parents=True)
    if around := os.environ.get("TLKIT_CACHE"):
        graphs = Path(around, "graphs")
        graphs.mkdir(parents=True, exist_ok=True)
        (place / "graphs").symlink_to(graphs.resolve())
    return place


def environment(site: Path) -> Mapping[str, str]:
    """The environment of a process to which the plugin is installed; its metadata and its cache are in `site`."""
    site.mkdir(parents=True)
    describe(site, "tlkit-tiny", f"[tlkit]\ntiny = {__name__}\n")
    path = [str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TLKIT_CACHE": str(empty_cache(site / "cache"))}
