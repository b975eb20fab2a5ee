"""The standard plugin, registered by entry point like every other.

Its modules are imported inside the hooks, so that a failure is reported for the hook that needs the module.
"""

from __future__ import annotations

from collections.abc import Iterable

from tlkit import Detector
from tlkit.plugin.contract import Backbone, Head, Source, Strategy, Target
from tlkit.plugin.support import hookimpl


@hookimpl
def tlkit_backbones() -> Iterable[Backbone]:
    """Return pretrained networks whose weights come from a package."""
    from tlkit_standard.backbones import BACKBONES

    return BACKBONES


@hookimpl
def tlkit_heads() -> Iterable[Head]:
    """Return linear, prototype, nearest-neighbor and kernel heads."""
    from tlkit_standard.heads import HEADS

    return HEADS


@hookimpl
def tlkit_detectors() -> Iterable[Detector]:
    """Return detectors of images of no known class."""
    from tlkit_standard.detectors import DETECTORS

    return DETECTORS


@hookimpl
def tlkit_strategies() -> Iterable[Strategy]:
    """Return strategies from training the head alone to fine-tuning all stages."""
    from tlkit_standard.strategies import STRATEGIES

    return STRATEGIES


@hookimpl
def tlkit_targets() -> Iterable[Target]:
    """Return the runtimes that an ONNX graph is deployed to."""
    from tlkit_standard.targets import TARGETS

    return TARGETS


@hookimpl
def tlkit_sources() -> Iterable[Source]:
    """Return folders, tables and archives of images."""
    from tlkit_standard.sources import SOURCES

    return SOURCES
