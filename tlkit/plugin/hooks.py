"""Hooks that a plugin may implement, one per kind. They take no arguments and return iterables of components.

A module that is registered as an entry point of the group `tlkit` implements those it has components for:

    @tlkit.hookimpl
    def tlkit_heads():
        return [MyHead()]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType

import pluggy

from tlkit.plugin.kinds import by_hook
from tlkit.util.text import did_you_mean

NAMESPACE = "tlkit"  # of the hooks, and the group of the entry points

hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)


class PluginFault(Exception):
    """Fault of a plugin, in a sentence for its author."""


def register(plugin: object) -> pluggy.PluginManager:
    """Register one plugin in a manager of its own: none sees, wraps or hides another's hooks."""
    manager = pluggy.PluginManager(NAMESPACE)
    known = by_hook()
    manager.add_hookspecs(_specification(known))
    manager.register(plugin)
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        if not caller.has_spec() and not all(impl.optionalhook for impl in caller.get_hookimpls()):
            raise PluginFault(f"there is no hook {caller.name}{did_you_mean(caller.name, known)}")
    implemented = {caller.name for caller in callers}
    for hook in known:
        if hook not in implemented and hasattr(plugin, hook):
            raise PluginFault(f"{hook} lacks the decorator @tlkit.plugin.hooks.hookimpl")
    if not implemented:
        raise PluginFault(f"it implements none of {', '.join(known)}")
    return manager


def call(manager: pluggy.PluginManager, hook: str) -> Iterator[object]:
    """Yield the components that a hook of the plugin returns."""
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    if not caller.get_hookimpls():
        return
    for components in caller() or [None]:  # pluggy drops what returned None
        if not isinstance(components, Iterable):
            raise PluginFault(f"{hook} returned {type(components).__name__}, not an iterable of components")
        yield from components


def _specification(hooks: Iterable[str]) -> ModuleType:
    """Return what pluggy holds plugins to: hooks of these names without arguments."""
    module = ModuleType(f"{__name__}.specification")
    vars(module).update({name: hookspec(lambda: ()) for name in hooks})
    return module
