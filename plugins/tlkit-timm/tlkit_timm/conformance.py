"""timm's own networks, which conformance checks compare the stages with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tlkit.conformance import Reference
from tlkit.plugin.contract import Backbone, Component
from tlkit_timm.backbone import PREFIX, Timm
from tlkit_timm.stages import PooledFeatures

if TYPE_CHECKING:
    from torch import nn

# Prefix of an architecture's name, the check that it can't pass, and the reason.
CACHED_BIAS = "in eval mode timm computes the attention's biases once and keeps them; in training mode they are trained"
EXEMPT = (
    ("levit_", "gradient-reaches-every-parameter", CACHED_BIAS),
    ("tiny_vit_", "gradient-reaches-every-parameter", CACHED_BIAS),
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
