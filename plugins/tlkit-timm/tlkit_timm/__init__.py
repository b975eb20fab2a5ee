"""timm's architectures as backbones of tlkit: `timm/resnet50`, and over a thousand more."""

from __future__ import annotations

from collections.abc import Iterable

from tlkit import hookimpl
from tlkit.plugin.contract import Backbone


@hookimpl
def tlkit_backbones() -> Iterable[Backbone]:
    """One for each architecture; none of them is looked at before it is used."""
    from tlkit_timm.backbone import PREFIX, Timm
    from tlkit_timm.names import architectures

    return [Timm(PREFIX + name) for name in architectures()]
