"""transformers' own networks and image processors, which conformance checks compare a backbone with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers
from numpy.typing import NDArray

from tlkit.conformance import Reference
from tlkit.plugin.contract import Backbone, Component
from tlkit_transformers import networks
from tlkit_transformers.backbone import Transformers

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

NO_HASH = "the hub is asked for a repository by its name, and the hash of its file is not known"


class TransformersReference(Reference):
    """transformers' networks, and its image processors at the size of their configuration."""

    def exempt(self, component: Component) -> Mapping[str, str]:
        from_hub = isinstance(component, Transformers) and component.checkpoint is None
        return {"hash-of-the-weights": NO_HASH} if from_hub else {}

    def features(self, backbone: Backbone, *, pretrained: bool) -> nn.Module | None:
        return networks.features(backbone, pretrained=pretrained) if isinstance(backbone, Transformers) else None

    def preprocess(self, backbone: Backbone) -> Callable[[Image], NDArray[np.float32]] | None:
        if not isinstance(backbone, Transformers) or backbone.size is not None:
            return None
        processor = image_processor(backbone.published.processor)

        def run(image: Image) -> NDArray[np.float32]:
            array: NDArray[np.float32] = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
            return array

        return run


def image_processor(config: Mapping[str, Any]) -> Any:
    """Return the processor of a configuration: that which runs in Pillow, if there is one."""
    kind = config["image_processor_type"]
    arguments = {name: value for name, value in config.items() if name != "image_processor_type"}
    return getattr(transformers, f"{kind}Pil", getattr(transformers, kind))(**arguments)
