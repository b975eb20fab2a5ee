"""torchvision's own networks and preprocessing, which conformance checks compare a backbone with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlkit.conformance import Reference
from tlkit.plugin.contract import Backbone, Component
from tlkit_torchvision import metadata, networks
from tlkit_torchvision.backbone import Torchvision

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

NO_HASH = "torchvision names the file that it downloads, but the first digits of its hash alone"


class TorchvisionReference(Reference):
    """torchvision's networks and preprocessing."""

    def exempt(self, component: Component) -> Mapping[str, str]:
        from_network = isinstance(component, Torchvision) and component.checkpoint is None
        return {"hash-of-the-weights": NO_HASH} if from_network else {}

    def features(self, backbone: Backbone, *, pretrained: bool) -> nn.Module | None:
        return networks.network(backbone, pretrained=pretrained) if isinstance(backbone, Torchvision) else None

    def logits(self, backbone: Backbone) -> nn.Module | None:
        return networks.model(backbone, pretrained=True)[0] if isinstance(backbone, Torchvision) else None

    def preprocess(self, backbone: Backbone) -> Callable[[Image], NDArray[np.float32]] | None:
        if not isinstance(backbone, Torchvision) or backbone.size is not None:
            return None  # at another size, tlkit crops the same share, which torchvision would round to whole pixels
        its = metadata.entry(backbone).transforms()

        def run(image: Image) -> NDArray[np.float32]:
            array: NDArray[np.float32] = its(image).numpy()
            return array

        return run
