"""From a folder of labelled images and a pretrained network to a proven, deployed classifier."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tlkit.version import __version__

if TYPE_CHECKING:
    from tlkit.errors import TlkitError
    from tlkit.plugin.contract import (
        Backbone,
        DatasetStatistics,
        Head,
        Phase,
        Preprocessing,
        Session,
        Strategy,
        Target,
        Weights,
        option,
    )
    from tlkit.plugin.hooks import hookimpl
    from tlkit.runtime.model import Model

__all__ = [
    "Backbone",
    "DatasetStatistics",
    "Head",
    "Model",
    "Phase",
    "Preprocessing",
    "Session",
    "Strategy",
    "Target",
    "TlkitError",
    "Weights",
    "__version__",
    "hookimpl",
    "option",
]

_PLACES = {"Model": "tlkit.runtime.model", "TlkitError": "tlkit.errors", "hookimpl": "tlkit.plugin.hooks"}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import tlkit` costs nothing and needs no framework."""
    if name not in __all__:
        raise AttributeError(f"module 'tlkit' has no attribute {name!r}")
    return getattr(import_module(_PLACES.get(name, "tlkit.plugin.contract")), name)


def __dir__() -> list[str]:
    """Names for completion, the names not yet imported included."""
    return sorted({*globals(), *__all__})
