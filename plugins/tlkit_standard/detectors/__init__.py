"""Detectors of unknown images. Declaring them imports no framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlkit import Detector
from tlkit.plugin.contract import option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


@dataclass(frozen=True)
class NearestNeighbor(Detector):
    """Distance to the k-th nearest training image, by the angle of features (Sun et al., ICML 2022)."""

    name = "nearest-neighbor"
    k: int = option(5, "neighbor whose distance counts", minimum=1)
    images: int = option(500, "training images to keep, drawn evenly from all classes", minimum=1)

    def fit(self, features: NDArray[np.float32], labels: NDArray[np.int64], head: nn.Module, seed: int) -> nn.Module:
        from tlkit_standard.detectors import _modules

        return _modules.Neighbors(_modules.bank(features, labels, self.images), self.k)

    def restore(self, tensors: Mapping[str, Any], head: nn.Module) -> nn.Module:
        from tlkit_standard.detectors import _modules

        return _modules.Neighbors(tensors["bank"], self.k)


@dataclass(frozen=True)
class Mahalanobis(Detector):
    """Mahalanobis distance to the nearest class mean, with one shrunk covariance of all classes (Lee et al. 2018)."""

    name = "mahalanobis"
    components: int = option(64, "principal components of the covariance; the rest is isotropic", minimum=1)

    def fit(self, features: NDArray[np.float32], labels: NDArray[np.int64], head: nn.Module, seed: int) -> nn.Module:
        from tlkit_standard.detectors import _modules

        return _modules.ClassDistance(**_modules.whitening(features, labels, self.components))

    def restore(self, tensors: Mapping[str, Any], head: nn.Module) -> nn.Module:
        from tlkit_standard.detectors import _modules

        return _modules.ClassDistance(**tensors)


@dataclass(frozen=True)
class Residual(Detector):
    """Share of the features outside the principal space of the training images (ViM: Wang et al., CVPR 2022)."""

    name = "residual"
    variance: float = option(0.9, "share of the variance that the principal space holds", minimum=0.0, maximum=1.0)

    def fit(self, features: NDArray[np.float32], labels: NDArray[np.int64], head: nn.Module, seed: int) -> nn.Module:
        from tlkit_standard.detectors import _modules

        return _modules.Outside(*_modules.principal(features, self.variance))

    def restore(self, tensors: Mapping[str, Any], head: nn.Module) -> nn.Module:
        from tlkit_standard.detectors import _modules

        return _modules.Outside(tensors["mean"], tensors["basis"])


@dataclass(frozen=True)
class Energy(Detector):
    """Energy of the logits, minus the logarithm of the sum of their exponentials (Liu et al., NeurIPS 2020).

    It says nothing for a head whose logits are logarithms of probabilities.
    """

    name = "energy"

    def fit(self, features: NDArray[np.float32], labels: NDArray[np.int64], head: nn.Module, seed: int) -> nn.Module:
        return self.restore({}, head)

    def restore(self, tensors: Mapping[str, Any], head: nn.Module) -> nn.Module:
        from tlkit_standard.detectors import _modules

        return _modules.LogitEnergy(head)


@dataclass(frozen=True)
class NeighborEnergy(Detector):
    """Sum of the nearest-neighbor distance and the energy, each at the scale of held-out training images."""

    name = "neighbor-energy"
    k: int = option(5, "neighbor whose distance counts", minimum=1)
    images: int = option(500, "training images to keep, drawn evenly from all classes", minimum=1)

    def fit(self, features: NDArray[np.float32], labels: NDArray[np.int64], head: nn.Module, seed: int) -> nn.Module:
        from tlkit_standard.detectors import _modules

        half = _modules.Neighbors(_modules.bank(features[::2], labels[::2], self.images), self.k)
        energy, least = _modules.LogitEnergy(head), (_modules.MIN_DISTANCE, _modules.MIN_ENERGY)
        scales = [_modules.scale(each, features[1::2], low) for each, low in zip((half, energy), least, strict=True)]
        bank = _modules.bank(features, labels, self.images)
        return _modules.Sum(_modules.Neighbors(bank, self.k), energy, scales)

    def restore(self, tensors: Mapping[str, Any], head: nn.Module) -> nn.Module:
        from tlkit_standard.detectors import _modules

        neighbors = _modules.Neighbors(tensors["one.bank"], self.k)
        return _modules.Sum(neighbors, _modules.LogitEnergy(head), tensors["scales"])


DETECTORS: tuple[Detector, ...] = (NearestNeighbor(), Mahalanobis(), Residual(), Energy(), NeighborEnergy())
