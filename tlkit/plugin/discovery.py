"""Find the entry points of plugins, whatever the state of their distributions."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from tlkit.plugin.contract import CONTRACT
from tlkit.version import __version__

OWN_DISTRIBUTION = "tlkit"

_REQUIRES_US = re.compile(rf"\s*{OWN_DISTRIBUTION}\s*(?![\w.-])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """One entry point that has not been imported yet; `load` imports it.

    `incompatible` is the reason not to: it was written for another contract, or requires another version of tlkit.
    """

    name: str
    distribution: str
    version: str
    module: str
    load: Callable[[], object]
    incompatible: str | None = None

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution} {self.version})"


def find(group: str) -> list[Found]:
    """Return the entry points of `group` and of `group.N`, for contract N, sorted by distribution and name.

    tlkit's own distribution comes first, so that no other can take a name of the standard plugin. If its metadata
    names no entry point, it is listed with the remedy.
    """
    by_name: dict[str, list[metadata.Distribution]] = {}
    for distribution in metadata.distributions():
        if declares(distribution, group):
            by_name.setdefault(normalize(_identity(distribution)[0]), []).append(distribution)
    found = list(itertools.chain.from_iterable(_chosen(name, several, group) for name, several in by_name.items()))
    if OWN_DISTRIBUTION not in by_name:
        why = f"its metadata is missing or damaged; run: pip install --force-reinstall --no-deps {OWN_DISTRIBUTION}"
        found.append(Found(OWN_DISTRIBUTION, OWN_DISTRIBUTION, __version__, "", _fail, why))
    return sorted(
        found, key=lambda each: (normalize(each.distribution) != OWN_DISTRIBUTION, each.distribution, each.name)
    )


def _chosen(name: str, several: list[metadata.Distribution], group: str) -> Iterator[Found]:
    """Yield the entry points of the first distribution of a name, as imports do, and name those that it hides.

    Of several in one folder the first is the one that was written last: an upgrade left the others. tlkit's own is the
    one that this module belongs to, or that has its version, wherever another calls itself so.
    """
    there = [each for each in several if _place(each).parent == _place(several[0]).parent]
    first = max(there, key=_time)
    if name == OWN_DISTRIBUTION:
        ours = [each for each in several if _identity(each)[1] == __version__]
        first = next(filter(_is_this, several), (ours or [first])[0])
    yield from _read(first, group)
    version = _identity(first)[1]
    for other in several:
        hidden, hidden_version = _identity(other)
        if (
            other is not first
            and (hidden_version != version or name == OWN_DISTRIBUTION)
            and _place(other) != _place(first)
        ):
            why = f"{hidden} {version} in {_place(first).parent} hides it; remove one of the two"
            yield Found(hidden, hidden, hidden_version, "", functools.partial(_fail, RuntimeError(why)), why)


def _is_this(distribution: metadata.Distribution) -> bool:
    """Return True for the distribution that this module was installed with, as a copy or in place."""
    try:
        noted = json.loads(distribution.read_text("direct_url.json") or "{}").get("url", "")
        roots = [Path(str(distribution.locate_file(""))), *([Path(unquote(urlsplit(noted).path))] if noted else [])]
        return Path(__file__).parents[2].resolve() in [root.resolve() for root in roots]
    except Exception:  # noqa: BLE001  # as in `provenance`
        return False


def _place(distribution: metadata.Distribution) -> Path:
    """Return the folder of the metadata."""
    return Path(str(getattr(distribution, "_path", ""))).absolute()


def _time(distribution: metadata.Distribution) -> float:
    """Return when the metadata was written."""
    try:
        return max(file.stat().st_mtime for file in _place(distribution).iterdir())
    except (OSError, ValueError):  # gone, or empty
        return 0.0


def damaged() -> list[str]:
    """Return the folders of metadata that name no distribution, as an interrupted installation leaves them."""
    places = {str(_place(each)) for each in metadata.distributions() if not _text(each, "METADATA", "PKG-INFO")}
    return sorted(places)


def suspects() -> list[str]:
    """Return what may hide a plugin that was asked for: damaged metadata, and distributions that lost their plugin."""
    lost = [
        f"{_identity(each)[0]} requires {OWN_DISTRIBUTION} and declares no plugin"
        for each in metadata.distributions()
        if not _text(each, "entry_points.txt") and any(map(_REQUIRES_US.match, _requirements(each)))
    ]
    return [f"the metadata in {folder} is damaged" for folder in damaged()] + sorted(set(lost))


def _text(distribution: metadata.Distribution, *names: str) -> str:
    """Return the first file of the metadata that holds text, in whatever encoding."""
    for name in names:
        try:
            text = distribution.read_text(name)
        except UnicodeError:
            text = (_place(distribution) / name).read_bytes().replace(b"\0", b"").decode("latin-1")
        except OSError:
            text = None
        if text:
            return text
    return ""


def normalize(name: str) -> str:
    """Return the normalized name of a distribution (Python packaging specifications, "Names and normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()


def provenance(distribution: str) -> str:
    """Return the origin of an installed distribution, as its installer recorded it (PEP 610)."""
    try:
        found = metadata.distribution(distribution)
        noted = json.loads(found.read_text("direct_url.json") or "null")
        if noted is None:
            return "a package index" if found.read_text("INSTALLER") else "Python's path: no installer recorded it"
        commit = noted.get("vcs_info", {}).get("commit_id", "")
        editable = " (editable)" if noted.get("dir_info", {}).get("editable") else ""
        return f"{noted['url']}{commit and '@' + commit}{editable}"
    except Exception:  # noqa: BLE001  # a record may be missing or malformed in many ways
        return "an unknown origin"


def declares(distribution: metadata.Distribution, group: str) -> bool:
    """Return True if the metadata has the group of any contract; nothing is parsed, as most distributions have none."""
    return re.search(rf"(?m)^[^\[\n#]*\[{group}(\.\d+)?\]", _text(distribution, "entry_points.txt")) is not None


def _read(distribution: metadata.Distribution, group: str) -> list[Found]:
    """Return the entry points of the group, or one that fails to load if they can't be read."""
    name, version = _identity(distribution)
    try:
        written_for = {each: _contract(each.group, group) for each in distribution.entry_points}
        ours = [each for each, contract in written_for.items() if contract == CONTRACT]
        others = [each for each, contract in written_for.items() if contract is not None]
        if not others:
            raise ValueError("its entry_points.txt can't be parsed; install it again")
        incompatible = _incompatible(distribution, name)
        if others and not ours:
            incompatible = (
                f"it was written for contract {written_for[others[0]]} of plugins, and this {OWN_DISTRIBUTION} "
                f"{__version__} has contract {CONTRACT}"
            )
        if incompatible:
            incompatible += f"; install a version of {name} for this one"
        return [Found(each.name, name, version, each.module, each.load, incompatible) for each in ours or others]
    except Exception as problem:  # noqa: BLE001  # malformed text: the parser raises many types
        return [Found(name, name, version, "", functools.partial(_fail, problem))]


def _contract(declared: str, group: str) -> int | None:
    """Return the contract that a group of entry points declares, 1 if it names none; None for another group."""
    found = re.fullmatch(rf"{group}(?:\.(\d+))?", declared)
    return None if found is None else int(found[1] or 1)


def _incompatible(distribution: metadata.Distribution, name: str) -> str | None:
    """Return why a plugin does not support this version, by the range that it requires, or None."""
    if normalize(name) == OWN_DISTRIBUTION:
        return None
    for text in filter(_REQUIRES_US.match, _requirements(distribution)):
        from packaging.requirements import InvalidRequirement, Requirement  # only for who needs it: 15 ms

        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # which an installer would have refused
            continue
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and not requirement.specifier.contains(__version__, prereleases=True):
            return f"it requires {OWN_DISTRIBUTION} {requirement.specifier}, and this is {__version__}"
    return None


def _requirements(distribution: metadata.Distribution) -> list[str]:
    try:
        return distribution.requires or []
    except Exception:  # noqa: BLE001  # as below
        return []


def _identity(distribution: metadata.Distribution) -> tuple[str, str]:
    """Return name and version, which the folder's name has as well if there is no METADATA."""
    name, _, version = _place(distribution).stem.partition("-")
    try:
        return distribution.name or name, distribution.version or version or "unknown"
    except Exception:  # noqa: BLE001  # no METADATA, or not text: what is raised depends on the Python version
        return name or "unknown", version or "unknown"


def _fail(problem: Exception | None = None) -> NoReturn:
    raise problem or RuntimeError
