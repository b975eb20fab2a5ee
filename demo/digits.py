"""Write scikit-learn's handwritten digits out as PNG files in class folders: real data that needs no network.

1,797 grey images of 8 x 8 pixels (Alpaydin and Kaynak 1998), enlarged so that there is something to see.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 64


def write(root: Path, per_class: int | None = None, test: Path | None = None) -> None:
    """Write `root/<digit>/<number>.png`; all, or the first `per_class` of each; every fifth to `test` instead."""
    digits = load_digits()
    for label in range(10):
        for place, number in enumerate(np.flatnonzero(digits.target == label)[:per_class]):
            folder = (test if test is not None and place % 5 == 4 else root) / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[number] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:04}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]), per_class=80, test=Path(sys.argv[2]))  # minutes to fine-tune on two cores
