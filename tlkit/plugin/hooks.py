"""The hooks a plugin may implement. They take no arguments, return iterables, and hold no logic."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from tlkit.plugin.contract import Backbone, Head, Strategy, Target

NAMESPACE = "tlkit"  # of the hooks, and the entry-point group that plugins are found in

hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)


@hookspec
def tlkit_backbones() -> Iterable[Backbone]:  # type: ignore[empty-body]
    """Pretrained networks."""


@hookspec
def tlkit_heads() -> Iterable[Head]:  # type: ignore[empty-body]
    """Ways from features to logits."""


@hookspec
def tlkit_strategies() -> Iterable[Strategy]:  # type: ignore[empty-body]
    """Ways to train."""


@hookspec
def tlkit_targets() -> Iterable[Target]:  # type: ignore[empty-body]
    """Runtime formats to deploy to."""
