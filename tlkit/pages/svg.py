"""Figures as SVG inside a page: colors, legends, pictures and axes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkit.data.decoding import UnreadableImage
from tlkit.data.preprocessing import load
from tlkit.pages.html import text
from tlkit.plugin.contract import Preprocessing

GRAY = 0.93  # around a whole image
# Distinguishable with most color vision deficiencies (Okabe and Ito 2008), on light and dark.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c7a00", "#7a5fb0")


def colors(count: int) -> list[str]:
    """Return a color for each class."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    return [f"hsl({360 * number / count:.0f} 65% {(42, 58)[number % 2]}%)" for number in range(count)]


def thumbnail(source: Path | bytes, size: int, quality: int = 80, *, whole: bool = False) -> str | None:
    """Return a square thumbnail as a `data:` URL, of the middle or of the whole image; None for an unreadable one."""
    mode = "border" if whole else "center"
    square = Preprocessing(size, (GRAY,) * 3, (0.5,) * 3, crop_pct=1.0, crop_mode=mode, interpolation="bilinear")
    try:
        return picture(load(source, square), quality)
    except UnreadableImage:
        return None


def picture(pixels: NDArray[np.uint8], quality: int = 80) -> str:
    """Return an image `(H, W, 3)` as a `data:` URL."""
    return _encoded(pixels, "jpeg", quality=quality)


def resized(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return an image as a square of this side in pixels."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def pixelated(pixels: NDArray[np.uint8]) -> str:
    """Return an image of few pixels `(H, W, 3)`, each of them exact, as a `data:` URL."""
    return _encoded(pixels, "png", optimize=True)


def _encoded(pixels: NDArray[np.uint8], kind: str, **options: Any) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def legend(names: Mapping[str, str]) -> str:
    """Return a list of names, each with its color."""
    spots = "".join(f'<li><span style="background:{color}"></span>{text(name)}</li>' for name, color in names.items())
    return f'<ul class="legend">{spots}</ul>'


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Return a figure of this size in pixels; `title` is what it shows, for those who can't see it."""
    view = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg {view} role="img" aria-label="{text(title)}">{"".join(parts)}</svg>'
