"""Preprocessing, origin and license of torchvision's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchvision import models

from tlkit.plugin.contract import Preprocessing, Weights
from tlkit.plugin.support import UsageError, did_you_mean, sha256

if TYPE_CHECKING:
    from tlkit_torchvision.backbone import Torchvision

# torchvision's code and files are under BSD-3-Clause; for the weights it refers to the terms of the training data.
LICENSE, LICENSE_CLASS = "LicenseRef-torchvision-ImageNet", "custom"
SWAG_LICENSE = "CC-BY-NC-4.0"  # what the license that `meta` links to is


def entry(backbone: Torchvision) -> Any:
    """Return the weights that a backbone's tag names in torchvision; without one, its default. Raises UsageError."""
    known = models.get_model_weights(backbone.architecture)
    if backbone.tag is None:
        return known.DEFAULT
    if backbone.tag not in known.__members__:
        raise UsageError(
            f"backbone {backbone.name!r}: torchvision has no weights {backbone.tag!r} for it"
            f"{did_you_mean(backbone.tag, known.__members__)}",
            do=f"choose one of {', '.join(each.name for each in known)}",
        )
    return known[backbone.tag]


def preprocessing(backbone: Torchvision) -> Preprocessing:
    """Return torchvision's preprocessing, which resizes the shorter side and takes the center, at `backbone.size`."""
    its = entry(backbone).transforms()
    (crop,), (shorter,) = its.crop_size, its.resize_size
    return Preprocessing(
        backbone.size or crop,
        mean=tuple(its.mean),
        std=tuple(its.std),
        crop_pct=crop / shorter,
        interpolation=its.interpolation.value,
    )


def weights(backbone: Torchvision) -> Weights:
    """Return the weights file, or else the address that torchvision downloads from."""
    if backbone.checkpoint is not None:
        if not backbone.checkpoint.is_file():
            raise UsageError("no such weights file", file=backbone.checkpoint)
        origin = f"the local file {backbone.checkpoint.name}"
        return Weights(origin, "LicenseRef-unknown", sha256(backbone.checkpoint), "unknown")
    found = entry(backbone)
    if "SWAG" in str(found.meta.get("license", "")):
        return Weights(found.url, SWAG_LICENSE)
    return Weights(found.url, LICENSE, license_class=LICENSE_CLASS)
