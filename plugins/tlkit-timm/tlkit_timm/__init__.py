"""timm's architectures as backbones of tlkit: `timm/resnet50`, and over a thousand more."""

from __future__ import annotations

from collections.abc import Iterable

from tlkit import Backbone, hookimpl


@hookimpl
def tlkit_backbones() -> Iterable[Backbone]:
    """Return one backbone per architecture; each is examined when it is used."""
    from tlkit_timm.backbone import PREFIX, Timm
    from tlkit_timm.names import architectures

    return [Timm(PREFIX + name) for name in architectures()]
