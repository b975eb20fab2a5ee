"""An architecture of torchvision as a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tlkit.plugin.contract import Backbone, Preprocessing, Weights, option

if TYPE_CHECKING:
    from torch import nn

PREFIX = "torchvision/"


@dataclass(frozen=True)
class Torchvision(Backbone):
    """torchvision's network of that name; nothing but the name is known until it is used."""

    name: str
    checkpoint: Path | None = option(
        None, "weights file (.safetensors, .pth); none: torchvision's own, from its cache or the network", local=True
    )
    tag: str | None = option(None, "torchvision's weights, as in IMAGENET1K_V1, with their preprocessing")
    size: int | None = option(None, "input size in pixels; none: that of the weights", minimum=1)

    @property
    def architecture(self) -> str:
        """Name in torchvision."""
        return self.name.removeprefix(PREFIX)

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        """Return `stem`, `stage1` and so on as in the architecture, and `last` for a layer that follows."""
        from tlkit_torchvision import networks

        return networks.stages(self, pretrained=pretrained)

    def pool(self) -> nn.Module | None:
        from tlkit_torchvision import networks

        return networks.pool(self.architecture)

    def classifier(self) -> nn.Module | None:
        from tlkit_torchvision import networks

        return networks.classifier(self)

    # torchvision takes seconds to import, so what it knows of the weights is looked up on demand.
    @cached_property
    def preprocessing(self) -> Preprocessing:  # type: ignore[override]
        """Preprocessing of the weights in torchvision."""
        from tlkit_torchvision import metadata

        return metadata.preprocessing(self)

    @cached_property
    def weights(self) -> Weights:  # type: ignore[override]
        """Weights file, or the address that torchvision downloads from."""
        from tlkit_torchvision import metadata

        return metadata.weights(self)
