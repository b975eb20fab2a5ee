"""From a folder of labelled images and a pretrained network to a proven, deployed classifier."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tlkit.version import __version__

# ONNX Runtime writes a device id and events below the user's cache and uploads them, unless this is set before it is
# imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:  # the same names again: type checkers can't follow a table
    from tlkit.api import (
        advise as advise,
        benchmark as benchmark,
        diagnose as diagnose,
        evaluate as evaluate,
        export as export,
        export_shared_trunk as export_shared_trunk,
        export_triton as export_triton,
        list_components as list_components,
        load as load,
        train as train,
        verify as verify,
    )
    from tlkit.errors import (
        ArtifactError as ArtifactError,
        DataError as DataError,
        GateError as GateError,
        PluginError as PluginError,
        ResourceError as ResourceError,
        TlkitError as TlkitError,
        TlkitWarning as TlkitWarning,
        UsageError as UsageError,
    )
    from tlkit.features import (
        embed as embed,
        embedding_status as embedding_status,
        index as index,
        search as search,
    )
    from tlkit.insight import (
        card as card,
        inspect as inspect,
        look as look,
        report as report,
        suggest as suggest,
    )
    from tlkit.plugin.contract import (
        Augmentation as Augmentation,
        Backbone as Backbone,
        BuildSource as BuildSource,
        Component as Component,
        DatasetStatistics as DatasetStatistics,
        Head as Head,
        Loss as Loss,
        OptimizationProfile as OptimizationProfile,
        Optimizer as Optimizer,
        Phase as Phase,
        Preprocessing as Preprocessing,
        Progress as Progress,
        Reader as Reader,
        Record as Record,
        Session as Session,
        Source as Source,
        Strategy as Strategy,
        Target as Target,
        Weights as Weights,
        option as option,
        silent as silent,
    )
    from tlkit.plugin.detection import Detector as Detector
    from tlkit.plugin.hooks import hookimpl as hookimpl
    from tlkit.runtime.model import Model as Model
    from tlkit.server import serve as serve

_MODULES = {
    "tlkit.api": (
        "advise benchmark diagnose evaluate export export_shared_trunk export_triton list_components load train verify"
    ),
    "tlkit.errors": "ArtifactError DataError GateError PluginError ResourceError TlkitError TlkitWarning UsageError",
    "tlkit.features": "embed embedding_status index search",
    "tlkit.insight": "card inspect look report suggest",
    "tlkit.plugin.contract": (
        "Augmentation Backbone BuildSource Component DatasetStatistics Head Loss OptimizationProfile Optimizer Phase "
        "Preprocessing Progress Reader Record Session Source Strategy Target Weights option silent"
    ),
    "tlkit.plugin.detection": "Detector",
    "tlkit.plugin.hooks": "hookimpl",
    "tlkit.runtime.model": "Model",
    "tlkit.server": "serve",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import tlkit` costs nothing and needs no framework."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tlkit' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    """Return the public names for completion, those not yet imported included."""
    return sorted({*globals(), *__all__})
