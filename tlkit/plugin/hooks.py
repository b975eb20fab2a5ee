"""Hooks that a plugin may implement, one per kind. They take no arguments and return iterables of components.

A module that is registered as an entry point of the group `tlkit` implements those it has components for:

    @tlkit.hookimpl
    def tlkit_heads():
        return [MyHead()]
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

import pluggy

NAMESPACE = "tlkit"  # of the hooks, and the group of the entry points

hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)


def specification(hooks: Iterable[str]) -> ModuleType:
    """Return what pluggy holds plugins to: hooks of these names without arguments."""
    module = ModuleType(f"{__name__}.specification")
    vars(module).update({name: hookspec(lambda: ()) for name in hooks})
    return module
