"""Load plugins one by one and register their components by kind and name.

A plugin that fails is listed with its reason and never stops the others.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tlkit.errors import ArtifactError, UsageError
from tlkit.plugin import hooks
from tlkit.plugin.contract import Component
from tlkit.plugin.discovery import Found, find, normalize, suspects
from tlkit.plugin.loading import DISABLE_VARIABLE, RegisteredComponent, load_components
from tlkit.plugin.options import configure, from_json
from tlkit.util.text import did_you_mean

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*")
_NAMES_IN_MESSAGE = 30


@dataclass(frozen=True, slots=True)
class Plugin:
    """Plugin that was found: loaded, broken for `reason`, or not imported: disabled, or for another version.

    A broken one may still have components: those of the hooks that didn't fail.
    """

    name: str
    distribution: str
    version: str
    module: str
    state: Literal["ok", "broken", "disabled", "incompatible"]
    reason: str | None = None
    traceback: str | None = None  # of what it raised, for its author
    components: tuple[RegisteredComponent, ...] = ()

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution} {self.version})"

    @property
    def problem(self) -> str | None:
        """Problem with it in one line, or None."""
        refused = [registered for registered in self.components if registered.reason is not None]
        if self.state != "ok":
            return f"{self} is {self.state}: {self.reason}"
        if not refused:
            return None
        more = f"; {len(refused) - 1} more were refused, see `tlkit plugins`" if len(refused) > 1 else ""
        return f"{self}: its {refused[0].kind} {refused[0].name!r} was refused: {refused[0].reason}{more}"


class Host:
    """Plugins that were found, and their components by kind and name."""

    def __init__(self, found: Iterable[Found], disabled: Collection[str] = ()) -> None:
        """Load `found` in order, without those whose name or distribution is in `disabled` ("all": all)."""
        self._components: dict[tuple[str, str], RegisteredComponent] = {}
        self._disabled = {normalize(name) for name in disabled}
        self._unused = self._disabled - {"all"}  # names that matched no plugin so far
        self.plugins = tuple(self._admit(each) for each in found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line per plugin that is broken or has refused components, and one for unknown disabled names."""
        lines = [plugin.problem for plugin in self.plugins if plugin.problem and plugin.state != "disabled"]
        if self._unused:
            lines.append(f"{DISABLE_VARIABLE} names no installed plugin: {', '.join(sorted(self._unused))}")
        return tuple(lines)

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the names of the components of `kind`, sorted."""
        return tuple(sorted(name for registered_kind, name in self._components if registered_kind == kind))

    def get(self, kind: str, name: str, settings: Mapping[str, object] | None = None) -> Any:
        """Return the component of that kind and name, with its options set. Raises UsageError.

        Any, because only the caller knows the kind: `head: Head = host.get("head", "ridge")`.
        """
        return configure(self._named(kind, name).component, settings or {})

    def origin(self, component: Component) -> tuple[str, str]:
        """Return the distribution that provides `component`, and its version. Raises UsageError if none does."""
        registered = self._named(component.kind, component.name)
        same = [
            each for each in self._provided(component.kind, component.name) if type(each.component) is type(component)
        ]
        registered = same[0] if same else registered
        return registered.distribution, registered.version

    def require(
        self,
        kind: str,
        name: str,
        distribution: str,
        version: str,
        settings: Mapping[str, object],
        *,
        local: bool = False,
    ) -> Any:
        """Return the component that a bundle was made with, its options set from the bundle's JSON.

        With `local`, as for jobs, those of the machine that recorded them are set as well. Another version of the
        distribution is accepted, as verification replays the bundle's golden images. Raises ArtifactError.
        """
        if not _REQUIREMENT.fullmatch(f"{distribution}=={version}"):  # it would end in a command to be copied
            raise ArtifactError(f"the {kind}'s plugin can't be called {distribution!r}, version {version!r}")
        provided = self._provided(kind, name)
        registered = next((each for each in provided if normalize(each.distribution) == normalize(distribution)), None)
        if registered is None:
            raise self._absent(kind, name, distribution, version)
        if registered.version != version:
            settings = registered.component.migrate(settings, version)
        try:
            return from_json(registered.component, settings, local=local)
        except ArtifactError as problem:
            if registered.version == version:
                raise
            what = f"{problem.what} (made with {distribution} {version}, installed is {registered.version})"
            raise ArtifactError(what, do=_install(distribution, version)) from problem

    def _provided(self, kind: str, name: str) -> list[RegisteredComponent]:
        """Return the valid components of that kind and name: the one that keeps the name first."""
        all_ = [each for plugin in self.plugins for each in plugin.components if (each.kind, each.name) == (kind, name)]
        return [each for each in all_ if each.reason is None or each.doubled]

    def _named(self, kind: str, name: str) -> RegisteredComponent:
        if (kind, name) in self._components:
            return self._components[kind, name]
        known = self.names(kind)
        installed = ", ".join(known) if len(known) <= _NAMES_IN_MESSAGE else f"{len(known)}, see `tlkit plugins`"
        problems = [plugin.problem for plugin in self.plugins if plugin.problem]
        problems += suspects()
        what = f"there is no {kind} {name!r}{did_you_mean(name, known)}; installed: {installed or 'none'}"
        raise UsageError("; ".join([what, *problems]))

    def _absent(self, kind: str, name: str, distribution: str, version: str) -> ArtifactError:
        """Return the error for a component that `distribution` doesn't provide here: why, and what to do."""
        other = self._components.get((kind, name))
        plugins = [plugin for plugin in self.plugins if normalize(plugin.distribution) == normalize(distribution)]
        problems = [plugin.problem for plugin in plugins if plugin.problem]
        problems += [] if plugins else suspects()
        if problems:
            why = "; ".join(problems)
        elif other is not None:
            why = f"here, {other.distribution} {other.version} provides that name"
        else:
            why = f"{plugins[0].version} is installed and doesn't provide it" if plugins else "it is not installed"
        disabled = any(plugin.state == "disabled" for plugin in plugins)
        do = f"unset {DISABLE_VARIABLE}" if disabled else _install(distribution, version)
        return ArtifactError(f"needs {kind} {name!r} of {distribution} {version}: {why}", do=do)

    def _admit(self, found: Found) -> Plugin:
        plugin = Plugin(found.name, found.distribution, found.version, found.module, "ok")
        own_names = {normalize(found.name), normalize(found.distribution)}
        self._unused -= own_names
        if self._disabled & {"all", *own_names}:
            return replace(plugin, state="disabled", reason=f"{DISABLE_VARIABLE} says so")
        if found.incompatible:
            return replace(plugin, state="incompatible", reason=found.incompatible)
        components, failures = load_components(found)
        plugin = replace(plugin, components=tuple(self._index(registered) for registered in components))
        if not failures:
            return plugin
        reasons, tracebacks = zip(*failures, strict=True)
        return replace(plugin, state="broken", reason="; ".join(reasons), traceback="\n".join(tracebacks))

    def _index(self, registered: RegisteredComponent) -> RegisteredComponent:
        if registered.reason is not None:
            return registered
        first = self._components.setdefault((registered.kind, registered.name), registered)
        if first is registered:
            return registered
        both = f"{first.distribution} {first.version} and {registered.distribution} {registered.version}"
        reason = (
            f"both {both} provide it, and the first keeps the name; {DISABLE_VARIABLE}={normalize(first.distribution)} "
            f"gives it to the other"
        )
        return replace(registered, reason=reason, doubled=True)


def _install(distribution: str, version: str) -> str:
    return f'run: pip install "{distribution}=={version}"'


@functools.cache
def load() -> Host:
    """Return the host of every installed plugin, loaded once per process."""
    disabled = os.environ.get(DISABLE_VARIABLE, "").split(",")
    return Host(find(hooks.NAMESPACE), [name.strip() for name in disabled if name.strip()])
