"""Augmentation: random resized crops, mirroring, and RandAugment.

The random resized crop is that of Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6. Each view
follows from the seed, its number and the image's index alone, so neither threads nor an interrupted run change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkit.errors import ResourceError
from tlkit.plugin.phases import MAX_MAGNITUDE

AREA = (0.35, 1.0)  # from 0.08 on, as for ImageNet, a crop of few images often misses their subject
RATIO = (3 / 4, 4 / 3)
OPERATIONS = 2  # distortions of an image by RandAugment

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class View:
    """A part of any image: its share of the area, width / height, position (0 left or top, 1 right or bottom)."""

    area: float
    ratio: float
    x: float
    y: float
    mirrored: bool

    def box(self, extent: tuple[float, float]) -> Box:
        """Return this part of an image of `extent` (width, height), at least one pixel, clipped to the image."""
        area = self.area * extent[0] * extent[1]
        width = min(extent[0], max(1.0, math.sqrt(area * self.ratio)))
        height = min(extent[1], max(1.0, math.sqrt(area / self.ratio)))
        left, top = self.x * (extent[0] - width), self.y * (extent[1] - height)
        return left, top, left + width, top + height


def random_view(seed: int, number: int, index: int) -> View:
    """Return the view `number` of the image at `index`."""
    random = np.random.default_rng([seed, number, index])
    ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
    return View(random.uniform(*AREA), ratio, random.uniform(), random.uniform(), mirrored=bool(random.integers(2)))


def transforms() -> Any:
    """Return `torchvision.transforms.v2`, imported on request. Raises ResourceError if it is not installed."""
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # the latter if it was built for another PyTorch
        what = f"mixup, CutMix and RandAugment need torchvision: {error}"
        raise ResourceError(what, do='run: pip install "tlkit[train]"') from error
    return v2


def randaugment(image: NDArray[np.uint8], magnitude: int, key: list[int]) -> NDArray[np.uint8]:
    """Return the image `(S, S, 3)` after two random distortions of this magnitude, each in a random direction.

    Cubuk et al., "RandAugment", 2019, with the ranges of torchvision's own class. That one draws from PyTorch's global
    state, which threads share; this draws from `key` alone, so that a run can be repeated and resumed.
    """
    functional = transforms().functional
    random, result = np.random.default_rng(key), Image.fromarray(image)
    names = list(_DISTORTIONS)
    for number in random.integers(len(names), size=OPERATIONS):
        strength = magnitude / MAX_MAGNITUDE * (1 if random.integers(2) else -1)
        result = _DISTORTIONS[names[number]](functional, result, strength)
    return np.array(result)


def _affine(functional: Any, image: Any, **parameters: Any) -> Any:
    identity: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return functional.affine(image, **{**identity, **parameters})


# By name: (functional, image, strength in [-1, 1]) -> image.
_DISTORTIONS: Mapping[str, Callable[[Any, Any, float], Any]] = {
    "identity": lambda _f, image, _s: image,
    "shear x": lambda f, image, s: _affine(f, image, shear=[float(np.degrees(np.arctan(0.3 * s))), 0.0]),
    "shear y": lambda f, image, s: _affine(f, image, shear=[0.0, float(np.degrees(np.arctan(0.3 * s)))]),
    "translate x": lambda f, image, s: _affine(f, image, translate=[int(150 / 331 * image.width * s), 0]),
    "translate y": lambda f, image, s: _affine(f, image, translate=[0, int(150 / 331 * image.height * s)]),
    "rotate": lambda f, image, s: f.rotate(image, 30.0 * s),
    "brightness": lambda f, image, s: f.adjust_brightness(image, 1 + 0.9 * s),
    "color": lambda f, image, s: f.adjust_saturation(image, 1 + 0.9 * s),
    "contrast": lambda f, image, s: f.adjust_contrast(image, 1 + 0.9 * s),
    "sharpness": lambda f, image, s: f.adjust_sharpness(image, 1 + 0.9 * s),
    "posterize": lambda f, image, s: f.posterize(image, 8 - round(4 * abs(s))),
    "solarize": lambda f, image, s: f.solarize(image, 255 * (1 - abs(s))),
    "autocontrast": lambda f, image, _s: f.autocontrast(image),
    "equalize": lambda f, image, _s: f.equalize(image),
}
