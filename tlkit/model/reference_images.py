"""The labelled images behind a bundle: those it was trained on, as long as they are there, or others that are named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tlkit.data import dataset as folder
from tlkit.data.dataset import Dataset
from tlkit.data.preprocessing import Rejected, load
from tlkit.errors import DataError, TlkitError, UsageError
from tlkit.model.bundle import Bundle

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
PARITY_IMAGES = 64


def dataset(bundle: Bundle, data: Path | None = None) -> tuple[Path, Dataset]:
    """Where the images are, and the images, labelled and split as in training; `data` names others."""
    source = data or Path(bundle.record.data["source"])
    if data is None and not source.exists():
        what = f"the images that {bundle.root} was trained on are not there any more"
        raise DataError(what, file=source, do="name others like them with --data")
    return source, folder.read(source, labels=bundle.record.labels, val=bundle.record.data["val"])


def spread(items: Sequence[T], most: int) -> list[T]:
    """Up to `most` of the items, evenly spaced; of items sorted by class, as many of each as its share."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def parity_images(bundle: Bundle, data: Path | None = None) -> tuple[NDArray[np.uint8], str]:
    """Images `(N, S, S, 3)` to check on, and where they were drawn from.

    From the validation split of `data`, or of the folder that was trained on if it is still there, or else the golden
    images of the bundle.
    """
    for named in dict.fromkeys([data, None]):
        try:
            place, found = dataset(bundle, named)
        except TlkitError:
            if named is not None:
                raise
            continue
        images = _load_some(bundle, [sample.path for sample in found.of("val")])
        if len(images):
            return images, f"the validation split of {place}"
    if not bundle.record.golden:
        raise UsageError(
            "there are no images to check the export on: the folder it was trained on is not there, and the bundle "
            "keeps no golden images",
            file=bundle.root,
            do="name a folder with --data",
        )
    return golden_pixels(bundle), "the golden images"


def golden_pixels(bundle: Bundle) -> NDArray[np.uint8]:
    """The golden images `(N, S, S, 3)` as they are loaded here."""
    return np.stack([load(content, bundle.record.preprocessing) for content in bundle.golden_bytes()])


def _load_some(bundle: Bundle, files: Sequence[Path]) -> NDArray[np.uint8]:
    """Up to `PARITY_IMAGES` of the files, evenly spaced; one that can't be used is passed over."""
    images = []
    for file in spread(files, PARITY_IMAGES):
        try:
            images.append(load(file, bundle.record.preprocessing))
        except Rejected:
            continue
    if files and not images:
        raise DataError("none of its validation images can be used", file=files[0].parent)
    size = bundle.record.preprocessing.size
    return np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)
