"""SqueezeNet 1.1 as a backbone, with torchvision's weights in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tlkit import Backbone, Preprocessing, Weights, hookimpl, option
from tlkit.plugin.support import UsageError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class SqueezenetBackbone(Backbone):
    """SqueezeNet (Iandola et al., 2016): four groups of fire modules."""

    name = "squeezenet"
    preprocessing = Preprocessing(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear")
    weights = Weights(
        "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
        "LicenseRef-torchvision-ImageNet",
        license_class="custom",
    )
    file: Path | None = option(None, "weights file", local=True)

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        from torch import nn

        from tlkit_squeezenet.network import Fire, pool

        stem = nn.Sequential(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool())
        stages = {
            "stem": stem,
            "fire2": nn.Sequential(Fire(64, 16, 64), Fire(128, 16, 64), pool()),
            "fire4": nn.Sequential(Fire(128, 32, 128), Fire(256, 32, 128), pool()),
            "fire6": nn.Sequential(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
        }
        if pretrained:
            self._load(stages)
        return {name: stage.eval() for name, stage in stages.items()}

    def _load(self, stages: Mapping[str, nn.Module]) -> None:
        """Load torchvision's tensors, whose names count through all stages."""
        from torch import nn

        from tlkit.plugin.support import load_weights, read_weights

        if self.file is None:
            raise UsageError("the weights are in no package", do="--set backbone.file=squeezenet1_1.pth")
        modules = nn.Sequential(*(module for stage in stages.values() for module in stage.children()))
        prefix = "features."
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in read_weights(self.file).items()
            if name.startswith(prefix)
        }
        load_weights(modules, tensors, file=self.file, what=self.name)


@hookimpl
def tlkit_backbones() -> Iterable[Backbone]:
    """Return the backbone."""
    return [SqueezenetBackbone()]
