"""Load plugins one by one and register their components by kind and name.

A plugin that fails is listed with its reason and never stops the others.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import pluggy

from tlkit.errors import ArtifactError, UsageError
from tlkit.plugin import hooks
from tlkit.plugin.contract import Backbone, Component
from tlkit.plugin.discovery import Found, find, normalize
from tlkit.plugin.kinds import BY_HOOK
from tlkit.plugin.options import configure, describe, from_json, to_json
from tlkit.plugin.validation import fault
from tlkit.util.text import did_you_mean, table

DISABLE_VARIABLE = "TLKIT_DISABLE_PLUGINS"

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*")
_NAMES_IN_MESSAGE = 30
_REASON_LENGTH = 300


@dataclass(frozen=True, slots=True)
class RegisteredComponent:
    """Component that a hook returned, or whatever was refused for `reason`."""

    kind: str
    name: str
    component: Any
    distribution: str
    version: str
    reason: str | None = None

    @property
    def state(self) -> Literal["ok", "refused"]:
        """`ok` if the host returns it."""
        return "ok" if self.reason is None else "refused"

    def __str__(self) -> str:
        lines = [f"{self.kind} {self.name} ({self.distribution} {self.version})"]
        if self.reason is not None:
            return f"{lines[0]} refused: {self.reason}"
        facts = self.to_json()
        options = [["option", "type", "default", "choices", "help"]]
        for each in facts.pop("options"):
            default = "none" if each["default"] is None else each["default"]
            options.append(
                [each["name"], each["type"], default, ", ".join(map(str, each["choices"] or ())), each["help"]]
            )
        details = ((name, value) for name, value in facts.items() if isinstance(value, Mapping))
        lines += [f"  {name}: " + ", ".join(f"{key} {value}" for key, value in each.items()) for name, each in details]
        return "\n".join(lines + [f"  {line}" for line in table(options, left=5) if len(options) > 1])

    def to_json(self) -> dict[str, Any]:
        """Return kind, name, state and options; of a backbone its weights and preprocessing as well."""
        facts: dict[str, Any] = {"kind": self.kind, "name": self.name, "distribution": self.distribution}
        facts |= {"version": self.version, "state": self.state, "reason": self.reason, "options": []}
        if self.reason is not None:
            return facts
        values = to_json(self.component)
        if isinstance(self.component, Backbone):
            facts |= {"weights": asdict(self.component.weights), "preprocessing": asdict(self.component.preprocessing)}
        facts["options"] = [
            {
                "name": each.name,
                "type": each.type,
                "default": values[each.name],
                "choices": list(each.choices) or None,
                "help": each.help,
            }
            for each in describe(self.component)
        ]
        return facts


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
        return registered.distribution, registered.version

    def require(self, kind: str, name: str, distribution: str, version: str, settings: Mapping[str, object]) -> Any:
        """Return the component that a bundle was made with, its options set from the bundle's JSON.

        Another version of the distribution is accepted, as verification replays the bundle's golden images. Raises
        ArtifactError.
        """
        if not _REQUIREMENT.fullmatch(f"{distribution}=={version}"):  # it would end in a command to be copied
            raise ArtifactError(f"the {kind}'s plugin can't be called {distribution!r}, version {version!r}")
        registered = self._components.get((kind, name))
        if registered is None or normalize(registered.distribution) != normalize(distribution):
            raise self._absent(kind, name, distribution, version)
        try:
            return from_json(registered.component, settings)
        except ArtifactError as problem:
            if registered.version == version:
                raise
            what = f"{problem.what} (made with {distribution} {version}, installed is {registered.version})"
            raise ArtifactError(what, do=_install(distribution, version)) from problem

    def _named(self, kind: str, name: str) -> RegisteredComponent:
        if (kind, name) in self._components:
            return self._components[kind, name]
        known = self.names(kind)
        installed = ", ".join(known) if len(known) <= _NAMES_IN_MESSAGE else f"{len(known)}, see `tlkit plugins`"
        problems = [plugin.problem for plugin in self.plugins if plugin.problem]
        what = f"there is no {kind} {name!r}{did_you_mean(name, known)}; installed: {installed or 'none'}"
        raise UsageError("; ".join([what, *problems]))

    def _absent(self, kind: str, name: str, distribution: str, version: str) -> ArtifactError:
        """Return the error for a component that `distribution` doesn't provide here: why, and what to do."""
        other = self._components.get((kind, name))
        plugins = [plugin for plugin in self.plugins if normalize(plugin.distribution) == normalize(distribution)]
        problems = [plugin.problem for plugin in plugins if plugin.problem]
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
            do = f"install a version of {found.distribution} for this one"
            return replace(plugin, state="incompatible", reason=f"{found.incompatible}; {do}")
        components, failures = _ask(found)
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
        return replace(registered, reason=f"both {both} provide it, and the first keeps the name")


def _install(distribution: str, version: str) -> str:
    return f'run: pip install "{distribution}=={version}"'


@functools.cache
def load() -> Host:
    """Return the host of every installed plugin, loaded once per process."""
    disabled = os.environ.get(DISABLE_VARIABLE, "").split(",")
    return Host(find(hooks.NAMESPACE), [name.strip() for name in disabled if name.strip()])


class _PluginFault(Exception):
    """Fault of a plugin, in a sentence for its author."""


class _Failure(NamedTuple):
    reason: str
    traceback: str


@contextlib.contextmanager
def _collecting(what: str, failures: list[_Failure]) -> Iterator[None]:
    """Run a plugin's code: what it prints goes to stderr, what it raises is added to `failures`."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except _PluginFault as fault:
        failures.append(_Failure(str(fault), traceback.format_exc()))
    except BaseException as error:  # noqa: BLE001  # also SystemExit: a plugin that exits must not end the host
        line = traceback.format_exception_only(error)[-1]  # str() would fail if __str__ raises
        failures.append(_Failure(textwrap.shorten(f"{what}: {line}", _REASON_LENGTH), traceback.format_exc()))


def _ask(found: Found) -> tuple[list[RegisteredComponent], list[_Failure]]:
    """Return the components of one plugin and its failures. A hook that fails loses its own components only."""
    components: list[RegisteredComponent] = []
    failures: list[_Failure] = []
    with _collecting("it failed to load", failures):
        manager = _register(found.load())
    if failures:
        return components, failures
    for hook, kind in BY_HOOK.items():
        with _collecting(f"{hook} failed", failures):
            components += [_validate(component, kind.base, found) for component in _call(manager, hook)]
    return components, failures


def _register(plugin: object) -> pluggy.PluginManager:
    """Register one plugin in a manager of its own: none sees, wraps or hides another's hooks."""
    manager = pluggy.PluginManager(hooks.NAMESPACE)
    manager.add_hookspecs(hooks)
    manager.register(plugin)
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        if not caller.has_spec() and not all(impl.optionalhook for impl in caller.get_hookimpls()):
            raise _PluginFault(f"there is no hook {caller.name}{did_you_mean(caller.name, BY_HOOK)}")
    implemented = {caller.name for caller in callers}
    for hook in BY_HOOK:
        if hook not in implemented and hasattr(plugin, hook):
            raise _PluginFault(f"{hook} lacks the decorator @tlkit.plugin.hooks.hookimpl")
    if not implemented:
        raise _PluginFault(f"it implements none of {', '.join(BY_HOOK)}")
    return manager


def _call(manager: pluggy.PluginManager, hook: str) -> Iterator[object]:
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    if not caller.get_hookimpls():
        return
    for components in caller() or [None]:  # pluggy drops what returned None
        if not isinstance(components, Iterable):
            raise _PluginFault(f"{hook} returned {type(components).__name__}, not an iterable of components")
        yield from components


def _validate(component: Any, contract: type[Component], found: Found) -> RegisteredComponent:
    name = getattr(component, "name", None)
    label = name if isinstance(name, str) else textwrap.shorten(repr(component), _REASON_LENGTH)
    return RegisteredComponent(
        contract.kind, label, component, found.distribution, found.version, fault(component, contract)
    )
