"""The labelled images behind a bundle: those it was trained on, as long as they are there, or others that are named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from tlkit.data import folder
from tlkit.data.folder import Dataset
from tlkit.errors import DataError
from tlkit.model.bundle import Bundle

T = TypeVar("T")


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
