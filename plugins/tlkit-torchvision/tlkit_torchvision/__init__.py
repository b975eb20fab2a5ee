"""torchvision's architectures as backbones of tlkit: `torchvision/resnet50` and others."""

from __future__ import annotations

from collections.abc import Iterable

from tlkit import Backbone, hookimpl


@hookimpl
def tlkit_backbones() -> Iterable[Backbone]:
    """Return one backbone per architecture; torchvision is imported when one of them is used."""
    from tlkit_torchvision.backbone import PREFIX, Torchvision
    from tlkit_torchvision.names import architectures

    return [Torchvision(PREFIX + name) for name in architectures()]
