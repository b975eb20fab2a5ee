"""What torchvision lends to training: mixup, CutMix, and the distortions of RandAugment. Imported when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tlkit.errors import ResourceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRONGEST = 30  # the magnitudes of RandAugment go from 0 to this
OPERATIONS = 2  # an image, one after the other


def transforms() -> Any:
    """`torchvision.transforms.v2`; a ResourceError where it is not there."""
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # the latter where it was built for another PyTorch
        what = f"mixup, CutMix and RandAugment need torchvision: {error}"
        raise ResourceError(what, do='run: pip install "tlkit[train]"') from error
    return v2


def randaugment(image: NDArray[np.uint8], magnitude: int, key: list[int]) -> NDArray[np.uint8]:
    """The image `(S, S, 3)` after two distortions at random, each of this magnitude in one or the other direction.

    Cubuk et al., "RandAugment", 2019, with the ranges of torchvision's own class. That one draws from PyTorch's global
    state, which threads share; this draws from `key` alone, so that a run can be repeated and taken up again.
    """
    functional = transforms().functional
    random, picture = np.random.default_rng(key), Image.fromarray(image)
    names = list(_DISTORTIONS)
    for number in random.integers(len(names), size=OPERATIONS):
        strength = magnitude / STRONGEST * (1 if random.integers(2) else -1)
        picture = _DISTORTIONS[names[number]](functional, picture, strength)
    return np.array(picture)


def _moved(functional: Any, picture: Any, **how: Any) -> Any:
    plain: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return functional.affine(picture, **{**plain, **how})


# By name: (functional, picture, strength in [-1, 1]) -> picture.
_DISTORTIONS: Mapping[str, Callable[[Any, Any, float], Any]] = {
    "identity": lambda _f, picture, _s: picture,
    "shear x": lambda f, picture, s: _moved(f, picture, shear=[float(np.degrees(np.arctan(0.3 * s))), 0.0]),
    "shear y": lambda f, picture, s: _moved(f, picture, shear=[0.0, float(np.degrees(np.arctan(0.3 * s)))]),
    "translate x": lambda f, picture, s: _moved(f, picture, translate=[int(150 / 331 * picture.width * s), 0]),
    "translate y": lambda f, picture, s: _moved(f, picture, translate=[0, int(150 / 331 * picture.height * s)]),
    "rotate": lambda f, picture, s: f.rotate(picture, 30.0 * s),
    "brightness": lambda f, picture, s: f.adjust_brightness(picture, 1 + 0.9 * s),
    "colour": lambda f, picture, s: f.adjust_saturation(picture, 1 + 0.9 * s),
    "contrast": lambda f, picture, s: f.adjust_contrast(picture, 1 + 0.9 * s),
    "sharpness": lambda f, picture, s: f.adjust_sharpness(picture, 1 + 0.9 * s),
    "posterize": lambda f, picture, s: f.posterize(picture, 8 - round(4 * abs(s))),
    "solarize": lambda f, picture, s: f.solarize(picture, 255 * (1 - abs(s))),
    "autocontrast": lambda f, picture, _s: f.autocontrast(picture),
    "equalize": lambda f, picture, _s: f.equalize(picture),
}
