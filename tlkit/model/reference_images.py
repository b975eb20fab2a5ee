"""Labelled images behind a bundle: those it was trained on, as long as they are there, or others that are named.

The folder is remembered in the cache of the machine that trained, by the bundle's digest: a bundle is the same wherever
its images lie.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tlkit.data import dataset as folder
from tlkit.data.dataset import Dataset, Sample
from tlkit.data.decoding import UnreadableImage
from tlkit.data.preprocessing import load
from tlkit.errors import DataError, TlkitError, UsageError
from tlkit.model.bundle import Bundle
from tlkit.util import files
from tlkit.util.schema import parse_json

T = TypeVar("T")
PARITY_IMAGES = 64
SOURCES = 8  # folders that are remembered for a bundle


class ParityImages(NamedTuple):
    """Images `(N, S, S, 3)` to compare output on, and where they come from."""

    images: NDArray[np.uint8]
    drawn_from: str


def remember(digest: str, source: Path) -> None:
    """Note on this machine where the images of a bundle lie; the bundle itself does not say.

    The same images in another folder make the same bundle: the last few folders are kept.
    """
    known = [str(source.absolute()), *_noted(digest)]
    with files.atomic_file(_note(digest)) as temporary:
        temporary.write_text(json.dumps({"sources": list(dict.fromkeys(known))[:SOURCES]}))


def source(bundle: Bundle) -> Path | None:
    """Return the folder or table that a bundle was trained on, if this machine knows it and it is still there."""
    return next((Path(known) for known in _noted(bundle.digest) if Path(known).exists()), None)


def dataset(bundle: Bundle, data: Path | None = None) -> tuple[Path, Dataset]:
    """Return the place of the images, and the images, labelled and split as in training; `data` names others."""
    place = data or source(bundle)
    if place is None:
        what = "the images that it was trained on are not on this machine any more"
        raise DataError(what, file=bundle.root, do="name others like them with --data")
    data_record = bundle.record.data
    found = folder.read(
        place, labels=bundle.record.labels, val=data_record.get("val", 0.2), group=data_record.get("group")
    )
    return place, found.without(data_record.get("rejected", ()))


def _note(digest: str) -> Path:
    return files.cache_dir("datasets") / f"{digest}.json"


def _noted(digest: str) -> list[str]:
    """Return the folders that were remembered, the last one first."""
    try:
        return [str(each) for each in parse_json(_note(digest).read_text("utf-8"))["sources"]]
    except (OSError, ValueError, KeyError, TypeError):  # trained elsewhere, or the cache was emptied
        return []


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return up to `most` of the items, evenly spaced: of items sorted by class, each class's share."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def parity_images(bundle: Bundle, data: Path | None = None) -> ParityImages:
    """Return images to check an export on.

    They come from the validation split of `data`, or of the dataset that was trained on if it is still there, or else
    from the golden images of the bundle.
    """
    for named in dict.fromkeys([data, None]):
        try:
            place, found = dataset(bundle, named)
        except TlkitError:
            if named is not None:
                raise
            continue
        samples = found.of("val")
        if images := load_spread(bundle, samples, PARITY_IMAGES)[1]:
            return ParityImages(np.stack(images), f"the validation split of {place.absolute().name}")
        if samples:
            raise DataError("none of its validation images can be used", file=samples[0].path.parent)
    if not bundle.record.golden:
        raise UsageError(
            "there are no images to check the export on: the folder it was trained on is not there, and the bundle "
            "keeps no golden images",
            file=bundle.root,
            do="name a folder with --data",
        )
    return ParityImages(golden_pixels(bundle), "the golden images")


def golden_pixels(bundle: Bundle) -> NDArray[np.uint8]:
    """Return the golden images `(N, S, S, 3)` as this machine loads them."""
    return np.stack([load(content, bundle.record.preprocessing) for content in bundle.golden_bytes()])


def load_spread(bundle: Bundle, samples: Sequence[Sample], most: int) -> tuple[list[str], list[NDArray[np.uint8]]]:
    """Return names and images `(S, S, 3)` of up to `most` samples, evenly spaced; unreadable ones are skipped."""
    names, images = [], []
    for sample in spread(samples, most):
        with suppress(UnreadableImage):
            images.append(load(sample.path, bundle.record.preprocessing))
            names.append(sample.name)
    return names, images
