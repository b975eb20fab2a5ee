"""Pretrained networks."""

from __future__ import annotations

from tlkit.plugin.contract import Backbone
from tlkit_standard.backbones.efficientnet_lite import EfficientNetLite0, EfficientNetLite1, EfficientNetLite2

BACKBONES: tuple[Backbone, ...] = (EfficientNetLite0(), EfficientNetLite1(), EfficientNetLite2())
