"""From a folder of labelled images and a pretrained network to a proven, deployed classifier."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tlkit.version import __version__

if TYPE_CHECKING:
    from tlkit.api import (
        advise,
        benchmark,
        diagnose,
        embed,
        evaluate,
        export,
        export_shared_trunk,
        export_triton,
        inspect,
        list_components,
        load,
        train,
        verify,
    )
    from tlkit.errors import (
        ArtifactError,
        DataError,
        GateError,
        ResourceError,
        TlkitError,
        TlkitWarning,
        UsageError,
    )
    from tlkit.plugin.contract import (
        Backbone,
        Component,
        DatasetStatistics,
        Head,
        OptimizationProfile,
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

_MODULES = {
    "tlkit.api": (
        "advise",
        "benchmark",
        "diagnose",
        "embed",
        "evaluate",
        "export",
        "export_shared_trunk",
        "export_triton",
        "inspect",
        "list_components",
        "load",
        "train",
        "verify",
    ),
    "tlkit.errors": (
        "ArtifactError",
        "DataError",
        "GateError",
        "ResourceError",
        "TlkitError",
        "TlkitWarning",
        "UsageError",
    ),
    "tlkit.plugin.contract": (
        "Backbone",
        "Component",
        "DatasetStatistics",
        "Head",
        "OptimizationProfile",
        "Phase",
        "Preprocessing",
        "Session",
        "Strategy",
        "Target",
        "Weights",
        "option",
    ),
    "tlkit.plugin.hooks": ("hookimpl",),
    "tlkit.runtime.model": ("Model",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ArtifactError",
    "Backbone",
    "Component",
    "DataError",
    "DatasetStatistics",
    "GateError",
    "Head",
    "Model",
    "OptimizationProfile",
    "Phase",
    "Preprocessing",
    "ResourceError",
    "Session",
    "Strategy",
    "Target",
    "TlkitError",
    "TlkitWarning",
    "UsageError",
    "Weights",
    "__version__",
    "advise",
    "benchmark",
    "diagnose",
    "embed",
    "evaluate",
    "export",
    "export_shared_trunk",
    "export_triton",
    "hookimpl",
    "inspect",
    "list_components",
    "load",
    "option",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import tlkit` costs nothing and needs no framework."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tlkit' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    """Return the public names for completion, those not yet imported included."""
    return sorted({*globals(), *__all__})
