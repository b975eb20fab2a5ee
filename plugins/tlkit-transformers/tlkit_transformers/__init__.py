"""Vision networks of transformers as backbones of tlkit: `transformers/facebook/dinov2-small` and others."""

from __future__ import annotations

from collections.abc import Iterable

from tlkit import Backbone, hookimpl


@hookimpl
def tlkit_backbones() -> Iterable[Backbone]:
    """Return one backbone per published network; transformers is imported when one of them is used."""
    from tlkit_transformers.backbone import PREFIX, Transformers
    from tlkit_transformers.published import ENTRIES

    return [Transformers(PREFIX + name) for name in ENTRIES]
