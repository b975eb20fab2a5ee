"""A vision network of transformers as a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tlkit.plugin.contract import Backbone, Preprocessing, Weights, option
from tlkit_transformers.published import ENTRIES, HubEntry

if TYPE_CHECKING:
    from torch import nn

PREFIX = "transformers/"


@dataclass(frozen=True)
class Transformers(Backbone):
    """Network of that name on the hub; nothing but the name is known until it is used."""

    name: str
    checkpoint: Path | None = option(
        None, "folder with config.json and model.safetensors; none: the hub's cache, or the hub", local=True
    )
    config: str = option("", "changes to the published configuration, as JSON, for a network of other dimensions")
    size: int | None = option(None, "input size in pixels; none: that of the image processor", minimum=1)
    pooling: Literal["own", "class", "mean"] = option(
        "own", "features: as the network pools, of the class token, or the mean of the patches"
    )

    @property
    def repository(self) -> str:
        """Name on the hub."""
        return self.name.removeprefix(PREFIX)

    @property
    def published(self) -> HubEntry:
        """Entry in the table of published networks."""
        return ENTRIES[self.repository]

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        """Return `stem`, `stage1` and so on (a block each, for transformers), and `last` for an attention pooling."""
        from tlkit_transformers import networks

        return networks.stages(self, pretrained=pretrained)

    def pool(self) -> nn.Module | None:
        from tlkit_transformers import networks

        return networks.pool(self)

    def classifier(self) -> nn.Module | None:
        from tlkit_transformers import loading

        return loading.classifier(self)

    @cached_property
    def preprocessing(self) -> Preprocessing:  # type: ignore[override]
        """Configuration of the image processor: that in the folder, or the published one."""
        from tlkit_transformers import loading

        return loading.preprocessing(self)

    @cached_property
    def weights(self) -> Weights:  # type: ignore[override]
        """Folder, or repository on the hub."""
        from tlkit_transformers import loading

        return loading.weights(self)

    def changes(self) -> dict[str, Any]:
        """Return the changes to the defaults of the network's type. Raises UsageError."""
        from tlkit_transformers import loading

        return {**self.published.config, **loading.parsed(self)}
