"""An architecture of timm as a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.plugin.contract import Backbone, Preprocessing, Weights, option

if TYPE_CHECKING:
    from torch import nn

PREFIX = "timm/"


@dataclass(frozen=True)
class Timm(Backbone):
    """timm's network of that name; nothing but the name is known until it is used."""

    name: str
    checkpoint: Path | None = option(
        None, "weights file (.safetensors, .pth); none: timm's own, from the hub's cache or the hub", local=True
    )
    tag: str | None = option(None, "tag of timm's weights, as in a1_in1k, with their preprocessing")
    size: int | None = option(None, "input size in pixels; none: that of the weights", minimum=1)

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        """Return `stem`, `stage1` and so on as in the architecture, and `last` for layers that follow."""
        from tlkit_timm import loading, stages

        size = self.preprocessing.size
        if pretrained and self.checkpoint is None:  # what can't be taken apart is refused before it is downloaded
            stages.stages(loading.outline(self.known, self.size), size)
        return stages.stages(self.model(pretrained=pretrained), size)

    def pool(self) -> nn.Module | None:
        from tlkit_timm import loading, stages

        return stages.pooling(loading.outline(self.known, self.size))

    def classifier(self) -> nn.Module | None:
        from tlkit_timm import stages

        return stages.classifier(self.model(pretrained=True))

    # Importing timm takes seconds, so its metadata is looked up on demand.
    @cached_property
    def preprocessing(self) -> Preprocessing:  # type: ignore[override]
        """Preprocessing of the weights in timm."""
        from tlkit_timm import loading

        return loading.preprocessing(self.known, self.size)

    @cached_property
    def weights(self) -> Weights:  # type: ignore[override]
        """Weights file, or the origin that timm downloads from."""
        from tlkit_timm import loading

        return loading.source(self.known, self.checkpoint)

    @property
    def known(self) -> Any:
        """timm's metadata of the weights."""
        from tlkit_timm import loading

        return loading.configuration(self.name.removeprefix(PREFIX), self.tag)

    def model(self, *, pretrained: bool) -> nn.Module:
        """Return timm's own model."""
        from tlkit_timm import loading

        return loading.model(self.known, self.size, self.checkpoint, pretrained=pretrained)
