"""Pictures of every mode, in every format that Pillow writes it in."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


def pictures_of_every_mode(folder: Path) -> Iterator[Path]:
    """Yield files of each mode in each format that Pillow writes it in, and what it writes of its own."""
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (40, 48, 4), np.uint8)).resize((48, 40), Image.Resampling.BICUBIC)
    gray16 = Image.fromarray(np.linspace(0, 65535, 1920).astype(np.uint16).reshape(40, 48))
    made = {
        mode: rgba.convert("RGB").convert(mode)
        for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")
    }
    made |= {
        "RGBA": rgba,
        "RGBX": rgba.convert("RGBX"),
        "LA": rgba.convert("LA"),
        "PA": rgba.convert("PA"),
        "I;16": gray16,
    }
    for (mode, picture), kind in itertools.product(made.items(), ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")):
        with contextlib.suppress(OSError, ValueError, KeyError):  # of modes that a format does not have
            picture.save(folder / f"{mode.replace(';', '-')}.{kind}", kind)
            yield folder / f"{mode.replace(';', '-')}.{kind}"
    made["P"].save(folder / "index.png", transparency=3)
    made["L"].save(folder / "gray.png", transparency=int(made["L"].getpixel((0, 0))))
    exif = Image.Exif()
    exif[0x0112] = 6
    made["RGB"].save(folder / "turned.jpg", exif=exif, quality=95)
    rgba.save(folder / "turned.png", exif=exif)
    yield from (folder / name for name in ("index.png", "gray.png", "turned.jpg", "turned.png"))
