"""Class folders or a table -> samples, labels and a split; and the images that a user points at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tlkit.data import table
from tlkit.data.scan import Listing, walk
from tlkit.data.split import LIMIT, SPLITS, Row, assign, known_labels, nfc, trained_labels
from tlkit.errors import DataError, UsageError
from tlkit.util.text import listed


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
    skipped: tuple[str, ...]  # what was passed over, one line each: path and reason
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


def read(source: Path, *, labels: Sequence[str] | None = None, val: float = 0.2, learnable: bool = True) -> Dataset:
    """A labelled set of images.

    It is read from one of

    - a folder of class folders, searched recursively;
    - a folder with train/ and any of val/ (or valid/, validation/) and test/, each with class folders;
    - a .csv or .parquet table with the columns path, label and optionally split.

    Where no val is given, about the share `val` of train becomes it, by a hash of each name (`split.assign`).

    Labels are the class names, sorted. With `labels`, those of a bundle, they keep that order, an unknown label
    is refused, and what only learning needs (two classes, each with images in train) is not asked for; nor is it
    where the set need not be `learnable`.

    Raises `DataError` with all that is wrong with the source, `UsageError` for a `val` outside 0..1.
    """
    if not 0.0 < val < 1.0:
        raise UsageError(f"val must lie between 0 and 1, not {val}")
    rows, skipped, problems = _stated(source)
    if labels is not None:
        labels = known_labels(rows, source, labels, problems)
    elif learnable:
        labels = trained_labels(rows, source, problems)
    else:
        labels = known_labels(rows, source, sorted({nfc(row.label) for row in rows}), problems)
    indices = {label: index for index, label in enumerate(labels)}
    samples = [
        Sample(row.path, row.name, indices[nfc(row.label)], split)
        for row, split in zip(rows, assign(rows, val), strict=True)
    ]
    samples.sort(key=lambda sample: sample.name)
    root = source if os.path.isdir(source) else source.parent
    return Dataset(root, tuple(labels), tuple(samples), tuple(skipped), rows[0].split is not None)


def is_learnable(source: Path, val: float) -> bool:
    """Whether `read` gives a set that can be learnt from."""
    try:
        read(source, val=val)
    except DataError:
        return False
    return True


class _Stated(NamedTuple):
    """What a source says: rows, what was passed over, and what is wrong with it."""

    rows: list[Row]
    skipped: list[str]
    problems: list[str]


def _stated(source: Path) -> _Stated:
    """What a source says, of at least one image."""
    if os.path.isdir(source):
        return _folders(source, walk(source))
    if not os.path.exists(source):
        raise DataError("no such file or folder", file=source)
    if source.suffix.lower() not in table.SUFFIXES:
        do = f"give a folder of class folders or a {' or '.join(sorted(table.SUFFIXES))} table"
        raise DataError("neither a folder nor a table", file=source, do=do)
    return _Stated(table.read(source), [], [])


def _folders(root: Path, listing: Listing) -> _Stated:
    tops = [folder for folder in listing.folders if "/" not in folder]
    splits = _split_folders(root, tops)
    stated = _Stated([], listing.skipped, [])
    for base, split in splits.items() or [("", None)]:
        _class_folders(root, listing, base, split, stated)
    if splits:
        stated.skipped.extend(f"{top}: not a split" for top in tops if top not in splits)
        stated.skipped.extend(f"{image}: beside the splits" for image in listing.images if "/" not in image)
    if not stated.rows:
        what = "images, but no class folders with images" if listing.images else "no images"
        raise DataError(f"holds {what}", file=root, do="put the images of each class into a folder of its own")
    stated.skipped.sort()
    return stated


def _split_folders(root: Path, tops: Sequence[str]) -> dict[str, str]:
    """The split that each folder directly under the root stands for; none unless there are train and another."""
    splits = {top: SPLITS[top.casefold()] for top in tops if top.casefold() in SPLITS}
    found = list(splits.values())
    if "train" not in found or len(found) == 1:
        return {}
    if len(set(found)) < len(found):
        what = f"several folders for the same split: {listed(splits, LIMIT)}"
        raise DataError(what, file=root, do="keep one for each")
    return splits


def _class_folders(root: Path, listing: Listing, base: str, split: str | None, stated: _Stated) -> None:
    """Enter into `stated` what the class folders in the folder `base` say."""
    prefix = f"{base}/" if base else ""
    classes = {folder[len(prefix) :].partition("/")[0] for folder in listing.folders if folder.startswith(prefix)}
    empty = set(classes)
    for image in listing.images:
        if not image.startswith(prefix):
            continue
        label, inside, _ = image[len(prefix) :].partition("/")
        if inside:
            stated.rows.append(Row(root / image, nfc(image), label, split))
            empty.discard(label)
        else:
            stated.skipped.append(f"{image}: beside the class folders")
    if empty:
        folders = listed((prefix + label for label in sorted(empty)), LIMIT)
        stated.problems.append(f"class folders without an image of their own: {folders}")
    if not classes:
        stated.problems.append(f"no class folders in {prefix}")


def images(sources: Sequence[Path]) -> list[Path]:
    """The files named, and the images under the folders named, in that order; each folder's images are sorted.

    A file that is named is kept whatever its suffix; a repeated one counts once. Raises `DataError` with all
    sources that do not exist or hold no image.
    """
    found: dict[str, Path] = {}
    problems: list[str] = []
    for source in sources:
        inside = [source / image for image in walk(source).images] if os.path.isdir(source) else [source]
        if not inside:
            problems.append(f"{source}: a folder without images")
        elif not os.path.exists(source):
            problems.append(f"{source}: no such file or folder")
        found.update((os.path.abspath(path), path) for path in inside)
    if problems:
        raise DataError(listed(problems, LIMIT))
    return list(found.values())
