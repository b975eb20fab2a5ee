"""The entry points that plugins are found by, whatever state their distributions are in."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import NoReturn

OWN_DISTRIBUTION = "tlkit"


@dataclass(frozen=True, slots=True)
class Found:
    """One entry point that has not been imported yet; `load` imports it."""

    name: str
    distribution: str
    version: str
    module: str
    load: Callable[[], object]


def find(group: str) -> list[Found]:
    """The entry points of `group`, sorted by distribution and name.

    The host's own distribution comes first, so that nobody else can take a name that ships with the host.
    """
    by_distribution: dict[str, list[Found]] = {}
    for distribution in metadata.distributions():
        if _declares(distribution, group):
            # The first on sys.path shadows others of the same name, as it does for imports.
            by_distribution.setdefault(normalise(_identity(distribution)[0]), _read(distribution, group))
    return sorted(itertools.chain.from_iterable(by_distribution.values()), key=_order)


def normalise(name: str) -> str:
    """The one spelling of a distribution's name (Python packaging specifications, "Names and normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _order(found: Found) -> tuple[bool, str, str]:
    return normalise(found.distribution) != OWN_DISTRIBUTION, found.distribution, found.name


def _declares(distribution: metadata.Distribution, group: str) -> bool:
    """Whether the group stands in the metadata; nothing is parsed, as most distributions offer no plugin."""
    try:
        return f"[{group}]" in (distribution.read_text("entry_points.txt") or "")
    except (OSError, UnicodeError):
        return False


def _read(distribution: metadata.Distribution, group: str) -> list[Found]:
    """Its entry points of the group, or one that fails to load where they can't be read."""
    name, version = _identity(distribution)
    try:
        entry_points = distribution.entry_points.select(group=group)
        return [Found(each.name, name, version, each.module, each.load) for each in entry_points]
    except Exception as problem:  # noqa: BLE001  # malformed text: the parser raises whatever it stumbles over
        return [Found(name, name, version, "", functools.partial(_fail, problem))]


def _identity(distribution: metadata.Distribution) -> tuple[str, str]:
    try:
        return distribution.name or "unknown", distribution.version or "unknown"
    except Exception:  # noqa: BLE001  # no METADATA, or not text: what is raised depends on the Python version
        return "unknown", "unknown"


def _fail(problem: Exception) -> NoReturn:
    raise problem
