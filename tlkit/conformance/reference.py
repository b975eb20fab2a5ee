"""Reference of a plugin: what checks compare its components with, and the checks that don't apply to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING

from tlkit.errors import UsageError
from tlkit.plugin.contract import Backbone, Component

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import nn

GROUP = "tlkit.conformance"  # of the entry points


class Reference:
    """Reference of a plugin's components.

    A plugin declares its own in the group of entry points `tlkit.conformance`:

        [project.entry-points."tlkit.conformance"]
        mynet = "tlkit_mynet.conformance:MyReference"

    It is found for every component that is defined in the same package, and imported by the checks alone.
    """

    def exempt(self, component: Component) -> Mapping[str, str]:
        """Return the checks that don't apply to a component, each with its reason."""
        return {}

    def features(self, backbone: Backbone, *, pretrained: bool) -> nn.Module | None:
        """Return the network as its own library runs it: normalized `(N, 3, S, S)` to pooled features `(N, width)`.

        None: there is no such library. With `pretrained=False`, it and the stages are built after the same
        `torch.manual_seed` and must get the same weights.
        """
        return None

    def logits(self, backbone: Backbone) -> nn.Module | None:
        """Return the pretrained network as its own library runs it: normalized `(N, 3, S, S)` to `(N, classes)`.

        It is compared with the backbone's `classifier`.
        """
        return None

    def preprocess(self, backbone: Backbone) -> Callable[[Image], NDArray[np.float32]] | None:
        """Return the library's own preprocessing, from an RGB image of Pillow to normalized float32 `(3, S, S)`."""
        return None


def installed(component: Component) -> Reference:
    """Return the reference that the package of a component declares, or one without any. Raises UsageError."""
    package = type(component).__module__.partition(".")[0]
    for point in metadata.entry_points(group=GROUP):
        if point.module.partition(".")[0] == package:
            try:
                reference = point.load()()
            except Exception as error:
                raise UsageError(
                    f"the reference {point.value} can't be loaded: {type(error).__name__}: {error}",
                    do=f"correct it, or its entry point in the group {GROUP}",
                ) from error
            if not isinstance(reference, Reference):
                raise UsageError(f"the reference {point.value} is no subclass of tlkit.conformance.Reference")
            return reference
    return Reference()
