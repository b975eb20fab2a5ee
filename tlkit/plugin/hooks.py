"""Hooks that a plugin may implement. They take no arguments and return iterables of components.

A module that is registered as an entry point of the group `tlkit` implements those it has components for:

    @tlkit.hookimpl
    def tlkit_heads():
        return [MyHead()]
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from tlkit.plugin.contract import Backbone, Head, Strategy, Target

NAMESPACE = "tlkit"  # of the hooks, and the group of the entry points

hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)


@hookspec
def tlkit_backbones() -> Iterable[Backbone]:  # type: ignore[empty-body]
    """Return pretrained networks."""


@hookspec
def tlkit_heads() -> Iterable[Head]:  # type: ignore[empty-body]
    """Return classifiers from features to logits."""


@hookspec
def tlkit_strategies() -> Iterable[Strategy]:  # type: ignore[empty-body]
    """Return training plans."""


@hookspec
def tlkit_targets() -> Iterable[Target]:  # type: ignore[empty-body]
    """Return runtime formats to deploy to."""
