"""Labeled datasets from class folders or a table, and images from paths that a user names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tlkit.data import table
from tlkit.data.labels import LIMIT, Entry, known_labels, nfc, training_labels
from tlkit.data.scan import Scan, scan
from tlkit.data.split import SPLITS, assign_splits
from tlkit.errors import DataError, UsageError
from tlkit.util.text import listed


@dataclass(frozen=True, slots=True)
class Sample:
    """One labeled image."""

    path: Path
    name: str  # POSIX path relative to the root, NFC: the same on every machine
    label: int  # index into `Dataset.labels`
    split: str  # "train", "val" or "test"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labeled images, sorted by name. `given_split`: the source states the splits."""

    root: Path
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[str, ...]  # one line each: path and reason
    given_split: bool

    def of(self, split: str) -> tuple[Sample, ...]:
        """Return the samples of one split, in order."""
        return tuple(sample for sample in self.samples if sample.split == split)

    def counts(self, split: str) -> dict[str, int]:
        """Return the number of samples per label in a split, in the order of the labels, including zeros."""
        numbers = [0] * len(self.labels)
        for sample in self.of(split):
            numbers[sample.label] += 1
        return dict(zip(self.labels, numbers, strict=True))


def read(source: Path, *, labels: Sequence[str] | None = None, val: float = 0.2, learnable: bool = True) -> Dataset:
    """Read a labeled dataset.

    The source is one of

    - a folder of class folders, searched recursively;
    - a folder with train/ and any of val/ (or valid/, validation/) and test/, each with class folders;
    - a .csv or .parquet table with the columns path, label and optionally split.

    Without a val split, about the share `val` of train becomes it, by a hash of each name (`split.assign_splits`).

    Labels are the class names, sorted. With `labels`, those of a bundle, they keep that order and an unknown label is
    refused. What only training needs (two classes, each with images in train) is required unless `labels` are given or
    the dataset need not be `learnable`.

    Raises `DataError` with all problems of the source, and `UsageError` for a `val` outside 0..1.
    """
    if not 0.0 < val < 1.0:
        raise UsageError(f"val must lie between 0 and 1, not {val}")
    entries, skipped, problems = _stated(source)
    if labels is not None:
        labels = known_labels(entries, source, labels, problems)
    elif learnable:
        labels = training_labels(entries, source, problems)
    else:
        labels = known_labels(entries, source, sorted({nfc(entry.label) for entry in entries}), problems)
    indices = {label: index for index, label in enumerate(labels)}
    samples = [
        Sample(entry.path, entry.name, indices[nfc(entry.label)], split)
        for entry, split in zip(entries, assign_splits(entries, val), strict=True)
    ]
    samples.sort(key=lambda sample: sample.name)
    root = source if os.path.isdir(source) else source.parent
    return Dataset(root, tuple(labels), tuple(samples), tuple(skipped), entries[0].split is not None)


def is_learnable(source: Path, val: float) -> bool:
    """Return whether a dataset can be trained on."""
    try:
        read(source, val=val)
    except DataError:
        return False
    return True


class _Stated(NamedTuple):
    """Contents of a source: entries, skipped files, and problems."""

    entries: list[Entry]
    skipped: list[str]
    problems: list[str]


def _stated(source: Path) -> _Stated:
    """Return the contents of a source with at least one image."""
    if os.path.isdir(source):
        return _read_folders(source, scan(source))
    if not os.path.exists(source):
        raise DataError("no such file or folder", file=source)
    if source.suffix.lower() not in table.SUFFIXES:
        do = f"give a folder of class folders or a {' or '.join(sorted(table.SUFFIXES))} table"
        raise DataError("neither a folder nor a table", file=source, do=do)
    return _Stated(table.read(source), [], [])


def _read_folders(root: Path, found: Scan) -> _Stated:
    tops = [folder for folder in found.folders if "/" not in folder]
    splits = _split_folders(root, tops)
    stated = _Stated([], found.skipped, [])
    for base, split in splits.items() or [("", None)]:
        _read_classes(root, found, base, split, stated)
    if splits:
        stated.skipped.extend(f"{top}: not a split" for top in tops if top not in splits)
        stated.skipped.extend(f"{image}: beside the splits" for image in found.images if "/" not in image)
    if not stated.entries:
        what = "images, but no class folders with images" if found.images else "no images"
        raise DataError(f"holds {what}", file=root, do="put the images of each class into a folder of its own")
    stated.skipped.sort()
    return stated


def _split_folders(root: Path, tops: Sequence[str]) -> dict[str, str]:
    """Return the split of each folder directly under the root; empty unless there are train and another."""
    splits = {top: SPLITS[top.casefold()] for top in tops if top.casefold() in SPLITS}
    names = list(splits.values())
    if "train" not in names or len(names) == 1:
        return {}
    if len(set(names)) < len(names):
        what = f"several folders for the same split: {listed(splits, LIMIT)}"
        raise DataError(what, file=root, do="keep one for each")
    return splits


def _read_classes(root: Path, found: Scan, base: str, split: str | None, stated: _Stated) -> None:
    """Add the class folders in the folder `base` to `stated`."""
    prefix = f"{base}/" if base else ""
    classes = {folder[len(prefix) :].partition("/")[0] for folder in found.folders if folder.startswith(prefix)}
    empty = set(classes)
    for image in found.images:
        if not image.startswith(prefix):
            continue
        label, inside, _ = image[len(prefix) :].partition("/")
        if inside:
            stated.entries.append(Entry(root / image, nfc(image), label, split))
            empty.discard(label)
        else:
            stated.skipped.append(f"{image}: beside the class folders")
    if empty:
        folders = listed((prefix + label for label in sorted(empty)), LIMIT)
        stated.problems.append(f"class folders without an image of their own: {folders}")
    if not classes:
        stated.problems.append(f"no class folders in {prefix}")


def find_images(sources: Sequence[Path]) -> list[Path]:
    """Return the named files, and the images under the named folders, in that order; those of a folder are sorted.

    A named file is kept whatever its suffix; a repeated one counts once. Raises `DataError` with all sources that do
    not exist or hold no image.
    """
    found: dict[str, Path] = {}
    problems: list[str] = []
    for source in sources:
        inside = [source / image for image in scan(source).images] if os.path.isdir(source) else [source]
        if not inside:
            problems.append(f"{source}: a folder without images")
        elif not os.path.exists(source):
            problems.append(f"{source}: no such file or folder")
        found.update((os.path.abspath(path), path) for path in inside)
    if problems:
        raise DataError(listed(problems, LIMIT))
    return list(found.values())
