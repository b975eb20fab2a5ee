"""Class folders or a table -> samples, labels and a split; and the images that a user points at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tlkit.data import table
from tlkit.data.split import SPLITS, Row, assign, known_labels, nfc, some, trained_labels
from tlkit.data.walk import Listing, walk
from tlkit.errors import DataError, UsageError


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image."""

    path: Path
    name: str  # POSIX path relative to the root, NFC: the same on every machine
    label: int  # index into `Dataset.labels`
    split: str  # "train", "val" or "test"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled images, sorted by name. `given_split`: the source states which images are for what."""

    root: Path
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    ignored: tuple[str, ...]  # what was passed over, one line each: path and reason
    given_split: bool

    def of(self, split: str) -> tuple[Sample, ...]:
        """The samples of one split, in order."""
        return tuple(sample for sample in self.samples if sample.split == split)

    def counts(self, split: str) -> dict[str, int]:
        """How many samples of each label a split has, in the order of the labels, zeros included."""
        numbers = [0] * len(self.labels)
        for sample in self.of(split):
            numbers[sample.label] += 1
        return dict(zip(self.labels, numbers, strict=True))


def read(source: Path, *, labels: Sequence[str] | None = None, val: float = 0.2) -> Dataset:
    """A labelled set of images, from one of

    - a folder of class folders, searched recursively;
    - a folder with train/ and any of val/ (or valid/, validation/) and test/, each with class folders;
    - a .csv or .parquet table with the columns path, label and optionally split.

    Where no val is given, about the share `val` of train becomes it, by a hash of each name (`split.assign`).

    Labels are the class names, sorted. With `labels`, those of a bundle, they keep that order, an unknown label
    is refused, and what only learning needs (two classes, each with images in train) is not asked for.

    Raises `DataError` with all that is wrong with the source, `UsageError` for a `val` outside 0..1.
    """
    if not 0.0 < val < 1.0:
        raise UsageError(f"val must lie between 0 and 1, not {val}")
    rows, ignored, problems = _stated(source)
    if labels is None:
        labels = trained_labels(rows, source, problems)
    else:
        known_labels(rows, source, labels, problems)
    indices = {label: index for index, label in enumerate(labels)}
    samples = [
        Sample(row.path, row.name, indices[nfc(row.label)], split)
        for row, split in zip(rows, assign(rows, val), strict=True)
    ]
    samples.sort(key=lambda sample: sample.name)
    root = source if source.is_dir() else source.parent
    return Dataset(root, tuple(labels), tuple(samples), tuple(ignored), rows[0].split is not None)


def _stated(source: Path) -> tuple[list[Row], list[str], list[str]]:
    """The rows of a source (at least one), what was ignored, and what is wrong with it."""
    if source.is_dir():
        return _class_folders(source, walk(source))
    if not source.exists():
        raise DataError("no such file or folder", file=source)
    if source.suffix.lower() not in table.SUFFIXES:
        raise DataError(
            "neither a folder nor a table", file=source, do=f"give a folder of class folders or a {_TABLES} file"
        )
    return table.read(source), [], []


_TABLES = " or ".join(sorted(table.SUFFIXES))


def _class_folders(root: Path, listing: Listing) -> tuple[list[Row], list[str], list[str]]:
    splits = _split_folders(root, listing)
    depth = 2 if splits else 1  # of a class folder
    rows: list[Row] = []
    ignored = listing.ignored + [f"{top}: not a split" for top in _tops(listing) if splits and top not in splits]
    for image in listing.images:
        parts = image.split("/")
        if len(parts) <= depth:
            ignored.append(f"{image}: beside the class folders")
        elif not splits:
            rows.append(Row(root / image, nfc(image), parts[0]))
        elif parts[0] in splits:
            rows.append(Row(root / image, nfc(image), parts[1], splits[parts[0]]))
    if not rows:
        what = "images, but no class folders with images" if listing.images else "no images"
        raise DataError(f"holds {what}", file=root, do="put the images of each class into a folder of its own")
    return rows, sorted(ignored), _empty_folders(listing, splits)


def _tops(listing: Listing) -> list[str]:
    return [folder for folder in listing.folders if "/" not in folder]


def _split_folders(root: Path, listing: Listing) -> dict[str, str]:
    """The split that each folder directly under the root stands for; none unless there are train and another."""
    splits = {top: SPLITS[top.casefold()] for top in _tops(listing) if top.casefold() in SPLITS}
    found = list(splits.values())
    if "train" not in found or len(found) < 2:
        return {}
    if len(set(found)) < len(found):
        raise DataError(f"several folders for the same split: {some(splits)}", file=root, do="keep one of each")
    return splits


def _empty_folders(listing: Listing, splits: dict[str, str]) -> list[str]:
    """Splits without a class folder and class folders without an image: probably a copy that failed."""
    filled = {"/".join(image.split("/")[: 2 if splits else 1]) for image in listing.images}
    classes = [path for path in listing.folders if path.count("/") == (1 if splits else 0)]
    inside = [path for path in classes if not splits or path.split("/")[0] in splits]
    hollow = sorted(set(splits) - {path.split("/")[0] for path in inside})
    empty = [path for path in inside if path not in filled]
    problems = [f"splits without class folders: {some(hollow)}"] if hollow else []
    return problems + ([f"class folders without an image: {some(empty)}"] if empty else [])


def images(sources: Sequence[Path]) -> list[Path]:
    """The files named, and the images under the folders named, in that order; each folder's images are sorted.

    A file that is named is kept whatever its suffix; a repeated one counts once. Raises `DataError` with all
    sources that do not exist or hold no image.
    """
    found: dict[str, Path] = {}
    problems: list[str] = []
    for source in sources:
        if source.is_dir():
            inside = [source / image for image in walk(source).images]
            if not inside:
                problems.append(f"{source}: a folder without images")
        else:
            inside = [source]
            if not source.exists():
                problems.append(f"{source}: no such file or folder")
        found.update((os.path.abspath(path), path) for path in inside)
    if problems:
        raise DataError("; ".join(problems[:10]) + (f" and {len(problems) - 10} more" if len(problems) > 10 else ""))
    return list(found.values())
