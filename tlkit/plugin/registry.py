"""Loads plugins one by one and indexes what they offer by kind and name.

A plugin that fails is remembered with its reason and is never in the way of the rest.
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
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import pluggy

from tlkit.errors import ArtefactError, UsageError
from tlkit.plugin import hooks
from tlkit.plugin.contract import Backbone, Component, Head, Strategy, Target
from tlkit.plugin.discovery import Found, find, normalize
from tlkit.plugin.options import configure, did_you_mean, from_json
from tlkit.plugin.validation import fault

DISABLE_VARIABLE = "TLKIT_DISABLE_PLUGINS"
BASE_CLASSES: dict[str, type[Component]] = {  # by hook
    "tlkit_backbones": Backbone,
    "tlkit_heads": Head,
    "tlkit_strategies": Strategy,
    "tlkit_targets": Target,
}

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*")
_NAMES_IN_MESSAGE = 30
_REASON_LENGTH = 300


@dataclass(frozen=True, slots=True)
class RegisteredComponent:
    """What a hook returned: an offer, or whatever was refused for `reason`."""

    kind: str
    name: str
    offer: Any
    distribution: str
    version: str
    reason: str | None = None

    @property
    def state(self) -> Literal["ok", "refused"]:
        """Whether the host gives it out."""
        return "ok" if self.reason is None else "refused"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin that was found: loaded, broken for `reason`, or never imported: disabled, or made for another version.

    One that is broken may still have offers: those of the hooks that didn't fail.
    """

    name: str
    distribution: str
    version: str
    module: str
    state: Literal["ok", "broken", "disabled", "incompatible"]
    reason: str | None = None
    traceback: str | None = None  # of what it raised, for its author
    offers: tuple[RegisteredComponent, ...] = ()

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution} {self.version})"

    @property
    def problem(self) -> str | None:
        """What to tell a user about it in one line; None where all is well."""
        refused = [offered for offered in self.offers if offered.reason is not None]
        if self.state != "ok":
            return f"{self} is {self.state}: {self.reason}"
        if not refused:
            return None
        more = f"; {len(refused) - 1} more were refused, see `tlkit plugins`" if len(refused) > 1 else ""
        return f"{self}: its {refused[0].kind} {refused[0].name!r} was refused: {refused[0].reason}{more}"


class Host:
    """The plugins that were found, and what they offer by kind and name."""

    def __init__(self, found: Iterable[Found], disabled: Collection[str] = ()) -> None:
        """Load `found` in the order given, without those whose name or distribution `disabled` has ("all": all)."""
        self._offers: dict[tuple[str, str], RegisteredComponent] = {}
        self._disabled = {normalize(name) for name in disabled}
        self._idle = self._disabled - {"all"}  # names that have disabled nothing so far
        self.plugins = tuple(self._admit(each) for each in found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each plugin that is broken or had offers refused, and one for names that disable nothing."""
        lines = [plugin.problem for plugin in self.plugins if plugin.problem and plugin.state != "disabled"]
        if self._idle:
            lines.append(f"{DISABLE_VARIABLE} names no installed plugin: {', '.join(sorted(self._idle))}")
        return tuple(lines)

    def names(self, kind: str) -> tuple[str, ...]:
        """The names of the offers of `kind`, sorted."""
        return tuple(sorted(name for offered_kind, name in self._offers if offered_kind == kind))

    def get(self, kind: str, name: str, settings: Mapping[str, object] | None = None) -> Any:
        """The offer of that kind and name, with its options set. Raises UsageError.

        Any, because only the caller knows which kind it asks for: `head: Head = host.get("head", "ridge")`.
        """
        return configure(self._named(kind, name).offer, settings or {})

    def origin(self, offer: Component) -> tuple[str, str]:
        """The distribution that `offer` comes from, and its version. Raises UsageError where no plugin offers it."""
        offered = self._named(offer.kind, offer.name)
        return offered.distribution, offered.version

    def require(self, kind: str, name: str, distribution: str, version: str, settings: Mapping[str, object]) -> Any:
        """The offer that a bundle was made with, its options set from the bundle's JSON. Raises ArtefactError.

        Another version of the distribution will do, since verification replays the bundle's golden images.
        """
        if not _REQUIREMENT.fullmatch(f"{distribution}=={version}"):  # it would end in a command to be copied
            raise ArtefactError(f"the {kind}'s plugin can't be called {distribution!r}, version {version!r}")
        offered = self._offers.get((kind, name))
        if offered is None or normalize(offered.distribution) != normalize(distribution):
            raise self._absent(kind, name, distribution, version)
        try:
            return from_json(offered.offer, settings)
        except ArtefactError as problem:
            if offered.version == version:
                raise
            what = f"{problem.what} (made with {distribution} {version}, installed is {offered.version})"
            raise ArtefactError(what, do=_install(distribution, version)) from problem

    def _named(self, kind: str, name: str) -> RegisteredComponent:
        if (kind, name) in self._offers:
            return self._offers[kind, name]
        known = self.names(kind)
        installed = ", ".join(known) if len(known) <= _NAMES_IN_MESSAGE else f"{len(known)}, see `tlkit plugins`"
        might_offer_it = [plugin.problem for plugin in self.plugins if plugin.problem]
        what = f"there is no {kind} {name!r}{did_you_mean(name, known)}; installed: {installed or 'none'}"
        raise UsageError("; ".join([what, *might_offer_it]))

    def _absent(self, kind: str, name: str, distribution: str, version: str) -> ArtefactError:
        """The error for an offer that `distribution` doesn't make here: why, and what to do."""
        other = self._offers.get((kind, name))
        plugins = [plugin for plugin in self.plugins if normalize(plugin.distribution) == normalize(distribution)]
        problems = [plugin.problem for plugin in plugins if plugin.problem]
        if problems:
            why = "; ".join(problems)
        elif other is not None:
            why = f"here, {other.distribution} {other.version} offers that name"
        else:
            why = f"{plugins[0].version} is installed and doesn't offer it" if plugins else "it is not installed"
        disabled = any(plugin.state == "disabled" for plugin in plugins)
        do = f"unset {DISABLE_VARIABLE}" if disabled else _install(distribution, version)
        return ArtefactError(f"needs {kind} {name!r} of {distribution} {version}: {why}", do=do)

    def _admit(self, found: Found) -> Plugin:
        plugin = Plugin(found.name, found.distribution, found.version, found.module, "ok")
        own_names = {normalize(found.name), normalize(found.distribution)}
        self._idle -= own_names
        if self._disabled & {"all", *own_names}:
            return replace(plugin, state="disabled", reason=f"{DISABLE_VARIABLE} says so")
        if found.incompatible:
            do = f"install a version of {found.distribution} for this one"
            return replace(plugin, state="incompatible", reason=f"{found.incompatible}; {do}")
        offers, failures = _ask(found)
        plugin = replace(plugin, offers=tuple(self._index(offered) for offered in offers))
        if not failures:
            return plugin
        reasons, tracebacks = zip(*failures, strict=True)
        return replace(plugin, state="broken", reason="; ".join(reasons), traceback="\n".join(tracebacks))

    def _index(self, offered: RegisteredComponent) -> RegisteredComponent:
        if offered.reason is not None:
            return offered
        first = self._offers.setdefault((offered.kind, offered.name), offered)
        if first is offered:
            return offered
        both = f"{first.distribution} {first.version} and {offered.distribution} {offered.version}"
        return replace(offered, reason=f"both {both} offer it, and the first keeps the name")


def _install(distribution: str, version: str) -> str:
    return f'run: pip install "{distribution}=={version}"'


@functools.cache
def load() -> Host:
    """The host of every plugin that is installed, loaded once a process."""
    disabled = os.environ.get(DISABLE_VARIABLE, "").split(",")
    return Host(find(hooks.NAMESPACE), [name.strip() for name in disabled if name.strip()])


class _PluginFault(Exception):
    """What is wrong with a plugin, in a sentence for its author."""


class _Failure(NamedTuple):
    reason: str
    traceback: str


@contextlib.contextmanager
def _blaming(what: str, failures: list[_Failure]) -> Iterator[None]:
    """For a block that runs a plugin's code: what it prints goes to stderr, what it raises joins `failures`."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except _PluginFault as fault:
        failures.append(_Failure(str(fault), traceback.format_exc()))
    except BaseException as error:  # noqa: BLE001  # also SystemExit: a plugin that exits must not end the host
        line = traceback.format_exception_only(error)[-1]  # unlike str(), it survives a __str__ that raises
        failures.append(_Failure(textwrap.shorten(f"{what}: {line}", _REASON_LENGTH), traceback.format_exc()))


def _ask(found: Found) -> tuple[list[RegisteredComponent], list[_Failure]]:
    """What one plugin offers and where it failed. A hook that fails takes only its own offers with it."""
    offers: list[RegisteredComponent] = []
    failures: list[_Failure] = []
    with _blaming("it failed to load", failures):
        manager = _register(found.load())
    if failures:
        return offers, failures
    for hook, contract in BASE_CLASSES.items():
        with _blaming(f"{hook} failed", failures):
            offers += [_judge(offer, contract, found) for offer in _call(manager, hook)]
    return offers, failures


def _register(plugin: object) -> pluggy.PluginManager:
    """The hooks of one plugin, in a manager of its own: none sees, wraps or hides another's hooks."""
    manager = pluggy.PluginManager(hooks.NAMESPACE)
    manager.add_hookspecs(hooks)
    manager.register(plugin)
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        if not caller.has_spec() and not all(impl.optionalhook for impl in caller.get_hookimpls()):
            raise _PluginFault(f"there is no hook {caller.name}{did_you_mean(caller.name, BASE_CLASSES)}")
    implemented = {caller.name for caller in callers}
    for hook in BASE_CLASSES:
        if hook not in implemented and hasattr(plugin, hook):
            raise _PluginFault(f"{hook} lacks the decorator @tlkit.plugin.hooks.hookimpl")
    if not implemented:
        raise _PluginFault(f"it implements none of {', '.join(BASE_CLASSES)}")
    return manager


def _call(manager: pluggy.PluginManager, hook: str) -> Iterator[object]:
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    if not caller.get_hookimpls():
        return
    for offers in caller() or [None]:  # pluggy drops what returned None
        if not isinstance(offers, Iterable):
            raise _PluginFault(f"{hook} returned {type(offers).__name__}, not an iterable of offers")
        yield from offers


def _judge(offer: Any, contract: type[Component], found: Found) -> RegisteredComponent:
    name = getattr(offer, "name", None)
    label = name if isinstance(name, str) else textwrap.shorten(repr(offer), _REASON_LENGTH)
    return RegisteredComponent(contract.kind, label, offer, found.distribution, found.version, fault(offer, contract))
