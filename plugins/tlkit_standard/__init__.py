"""The standard plugin: what ships with tlkit enters by the same door as everyone's.

Its parts are imported inside the hooks, so that one that fails is blamed on the hook that needs it.
"""

from __future__ import annotations

from collections.abc import Iterable

from tlkit.plugin.contract import Backbone, Head, Strategy, Target
from tlkit.plugin.hooks import hookimpl


@hookimpl
def tlkit_backbones() -> Iterable[Backbone]:
    """Pretrained networks whose weights come from a package."""
    from tlkit_standard.backbones import BACKBONES

    return BACKBONES


@hookimpl
def tlkit_heads() -> Iterable[Head]:
    """Linear, prototype, neighbour and kernel heads."""
    from tlkit_standard.heads import HEADS

    return HEADS


@hookimpl
def tlkit_strategies() -> Iterable[Strategy]:
    """From training the head alone to thawing the trunk stage by stage."""
    from tlkit_standard.strategies import STRATEGIES

    return STRATEGIES


@hookimpl
def tlkit_targets() -> Iterable[Target]:
    """The runtimes that an ONNX graph is deployed to."""
    from tlkit_standard.targets import TARGETS

    return TARGETS
