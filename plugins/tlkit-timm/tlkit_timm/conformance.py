"""timm's own networks, which conformance checks compare the stages with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from timm.data.transforms_factory import create_transform

from tlkit.conformance import Reference
from tlkit.plugin.contract import Backbone, Component
from tlkit_timm.backbone import PREFIX, Timm
from tlkit_timm.stages import PooledFeatures

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

# Prefix of an architecture's name, the check that it can't pass, and the reason.
CACHED_BIAS = "in eval mode timm computes the attention's biases once and keeps them; in training mode they are trained"
HALF_A_PIXEL = "of 121 pixels timm cuts 106, and moves the middle by half a pixel, which is much at this size"
EXEMPT = (
    ("levit_", "gradient-reaches-every-parameter", CACHED_BIAS),
    ("tiny_vit_", "gradient-reaches-every-parameter", CACHED_BIAS),
    ("tinynet_e", "preprocessing-equals-the-library", HALF_A_PIXEL),
)


class TimmReference(Reference):
    """timm's networks, and the checks that some of them can't pass."""

    def exempt(self, component: Component) -> Mapping[str, str]:
        reasons = {check: reason for prefix, check, reason in EXEMPT if component.name.startswith(PREFIX + prefix)}
        if isinstance(component, Timm) and component.checkpoint is None:
            reasons["hash-of-the-weights"] = "timm names the repository that it downloads weights from, but no hash"
        return reasons

    def features(self, backbone: Backbone, *, pretrained: bool) -> nn.Module | None:
        return PooledFeatures(backbone.model(pretrained=pretrained)) if isinstance(backbone, Timm) else None

    def logits(self, backbone: Backbone) -> nn.Module | None:
        return backbone.model(pretrained=True) if isinstance(backbone, Timm) else None

    def preprocess(self, backbone: Backbone) -> Callable[[Image], NDArray[np.float32]] | None:
        if not isinstance(backbone, Timm):
            return None
        known, size = backbone.known, backbone.preprocessing.size
        transform = create_transform(
            (3, size, size),
            interpolation=known.interpolation,
            mean=known.mean,
            std=known.std,
            crop_pct=known.crop_pct,
            crop_mode=known.crop_mode,
        )

        def run(image: Image) -> NDArray[np.float32]:
            array: NDArray[np.float32] = transform(image).numpy()
            return array

        return run
