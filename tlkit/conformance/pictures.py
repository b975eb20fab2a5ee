"""Twenty pictures for checks: landscapes, portraits and squares of noise that is smooth as photos are, with edges."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tlkit.data.preprocessing import load
from tlkit.plugin.contract import Preprocessing

SIZES = ((400, 300), (300, 400), (320, 320), (600, 250), (211, 313))  # pixels, width and height
COUNT = 20


@functools.cache
def pictures() -> tuple[Image.Image, ...]:
    """Return twenty RGB pictures, the same in every process."""
    return tuple(_picture(SIZES[number % len(SIZES)], np.random.default_rng(number)) for number in range(COUNT))


def preprocessed(preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the pictures as a network sees them, uint8 `(20, S, S, 3)`."""
    return np.stack([load(picture, preprocessing) for picture in pictures()])


def _picture(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """Return noise whose amplitude falls with its frequency, with an ellipse and a rectangle on it."""
    width, height = size
    content = np.zeros((height, width, 3))
    for octave in range(1, 7):
        cells = random.normal(0.0, 1.0, (2**octave, 2**octave, 3))
        for channel in range(3):
            grid = Image.fromarray(cells[..., channel].astype(np.float32))
            content[..., channel] += np.asarray(grid.resize(size, Image.Resampling.BICUBIC)) / octave
    content = 128 + 50 * content / content.std()
    picture = Image.fromarray(np.clip(content, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for shape in (draw.ellipse, draw.rectangle):
        left, top = (int(random.uniform(0.0, 0.6) * side) for side in size)
        color = tuple(random.integers(0, 256, 3).tolist())
        shape((left, top, left + width // 4, top + height // 4), fill=color)
    return picture
