"""Which components a name on the command line stands for."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from tlkit.errors import UsageError
from tlkit.plugin.discovery import normalize
from tlkit.plugin.registry import Host, RegisteredComponent
from tlkit.util.text import did_you_mean


@dataclass(frozen=True, slots=True)
class Selection:
    """Components to look at, refused ones among them, and what keeps a plugin from making more."""

    components: tuple[RegisteredComponent, ...]
    problems: tuple[str, ...] = ()


def select(host: Host, name: str, kind: str | None = None) -> Selection:
    """The components that `name` stands for: those called so, or fitting it as a pattern, or all of a plugin called so.

    Raises UsageError where there are none.
    """
    components = [each for plugin in host.plugins for each in plugin.components if kind in (None, each.kind)]
    if named := [each for each in components if fnmatchcase(each.name, name)]:
        return Selection(tuple(named))
    plugins = [each for each in host.plugins if normalize(name) in (normalize(each.name), normalize(each.distribution))]
    own = tuple(each for plugin in plugins for each in plugin.components if kind in (None, each.kind))
    problems = tuple(f"{plugin} is {plugin.state}: {plugin.reason}" for plugin in plugins if plugin.state != "ok")
    if own or problems:
        return Selection(own, problems)
    what = f"plugin {name!r} has no {kind}" if plugins else f"there is no {kind or 'component or plugin'} {name!r}"
    known = {*(each.name for each in components), *(each.name for each in host.plugins)}
    raise UsageError(what + did_you_mean(name, known), do="see: tlkit plugins")
