"""From a folder of labelled images and a pretrained network to a proven, deployed classifier."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlkit.deploy.runtime import Model as Model
    from tlkit.errors import TlkitError as TlkitError
    from tlkit.plugin.contract import (
        Backbone as Backbone,
    )
    from tlkit.plugin.contract import (
        Facts as Facts,
    )

__version__ = "0.1.0"

# Loaded at first use, so that `import tlkit` costs nothing and needs no framework.
_PUBLIC = {
    "Model": "tlkit.deploy.runtime",
    "TlkitError": "tlkit.errors",
    "Backbone": "tlkit.plugin.contract",
    "Facts": "tlkit.plugin.contract",
    "Head": "tlkit.plugin.contract",
    "Phase": "tlkit.plugin.contract",
    "Pixels": "tlkit.plugin.contract",
    "Session": "tlkit.plugin.contract",
    "Strategy": "tlkit.plugin.contract",
    "Target": "tlkit.plugin.contract",
    "hookimpl": "tlkit.plugin.hooks",
    "option": "tlkit.plugin.contract",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tlkit' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
