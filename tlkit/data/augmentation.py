"""Views of a picture: random parts of it, mirrored or not, so that no two epochs of training see the same pixels.

The random resized crop of Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6. Each view is drawn
from the seed, its number and the image's index alone, so neither threads nor a run taken up again change it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

AREA = (0.35, 1.0)  # from 0.08 on, as ImageNet is trained, a crop of few images often misses what they show
RATIO = (3 / 4, 4 / 3)

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class View:
    """A part of any picture: its share of the area, width / height, place (0 left or top, 1 right or bottom)."""

    area: float
    ratio: float
    x: float
    y: float
    mirrored: bool

    def box(self, extent: tuple[float, float]) -> Box:
        """This part of a picture of `extent` (width, height), never less than a pixel; what juts out is cut off."""
        area = self.area * extent[0] * extent[1]
        width = min(extent[0], max(1.0, math.sqrt(area * self.ratio)))
        height = min(extent[1], max(1.0, math.sqrt(area / self.ratio)))
        left, top = self.x * (extent[0] - width), self.y * (extent[1] - height)
        return left, top, left + width, top + height


def draw(seed: int, number: int, index: int) -> View:
    """The view `number` of the image at `index`."""
    random = np.random.default_rng([seed, number, index])
    ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
    return View(random.uniform(*AREA), ratio, random.uniform(), random.uniform(), mirrored=bool(random.integers(2)))
