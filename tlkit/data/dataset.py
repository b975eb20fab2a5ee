"""Labeled datasets from class folders or a table, and images from paths that a user names."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlkit.data import table
from tlkit.data.labels import LIMIT, TABLES, known_labels, nfc, states_val, training_labels
from tlkit.data.layout import Stated, read_folders
from tlkit.data.scan import scan
from tlkit.data.split import assign_splits, grouped, val_groups
from tlkit.errors import DataError, UsageError
from tlkit.plugin.contract import DatasetStatistics
from tlkit.util.text import counted, listed

SHOWN = 20  # classes that are named in text for people


@dataclass(frozen=True, slots=True)
class Sample:
    """One labeled image."""

    path: Path
    name: str  # POSIX path relative to the root, NFC: the same on every machine
    label: int  # index into `Dataset.labels`
    split: str  # "train", "val" or "test"
    group: str = ""  # images of one group are in one split; empty: it is alone

    @property
    def unit(self) -> str:
        """Name of what is split and cross-validated as one: the group, or the image itself."""
        return self.group or self.name


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labeled images, sorted by name. `given_split`: the source states the splits."""

    root: Path
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    skipped: Mapping[str, str]  # files that are no labeled images: path relative to the root to reason
    given_split: bool
    val: float | None = None  # share of train that was drawn as val; None if the source states val

    def __str__(self) -> str:
        """Return the classes with their number of images in each split, on one line."""
        splits = [split for split in ("train", "val", "test") if self.of(split)]
        counts = [self.counts(split) for split in splits]
        classes = (f"{label} {'/'.join(str(each[label]) for each in counts)}" for label in self.labels)
        return f"{counted(len(self.labels), 'class', 'classes')} ({'/'.join(splits)}): {listed(classes, SHOWN)}"

    def of(self, split: str) -> tuple[Sample, ...]:
        """Return the samples of one split, in order."""
        return tuple(sample for sample in self.samples if sample.split == split)

    def counts(self, split: str) -> dict[str, int]:
        """Return the number of samples per label in a split, in the order of the labels, including zeros."""
        numbers = [0] * len(self.labels)
        for sample in self.of(split):
            numbers[sample.label] += 1
        return dict(zip(self.labels, numbers, strict=True))

    @property
    def statistics(self) -> DatasetStatistics:
        """The counts over the training split that a strategy may look at."""
        counts = self.counts("train").values()
        return DatasetStatistics(sum(counts), len(counts), min(counts), max(counts))

    def without(self, unreadable: Collection[str]) -> Dataset:
        """Return the dataset without the samples of these names.

        If val was drawn, it is drawn again: without these, another image may be the one that a class is validated on.
        """
        left = [sample for sample in self.samples if sample.name not in unreadable]
        if self.val is not None and len(left) < len(self.samples):
            drawn = val_groups([(each.unit, each.label) for each in left if each.split != "test"], self.val)
            left = [
                each if each.split == "test" else replace(each, split="val" if each.unit in drawn else "train")
                for each in left
            ]
        return replace(self, samples=tuple(left))


def groups_of(samples: Sequence[Sample]) -> NDArray[np.int64] | None:
    """Return the numbers of the groups of samples `(N,)`; None if each image is alone."""
    names = [sample.unit for sample in samples]
    return np.unique(names, return_inverse=True)[1] if len(set(names)) < len(names) else None


def folds_of(samples: Sequence[Sample], count: int) -> NDArray[np.int64]:
    """Return the fold of each sample `(N,)`: those of a group are in one, those of a class in as many as can be."""
    sizes, folds = np.zeros((count, 1 + max(sample.label for sample in samples)), np.int64), dict[str, int]()
    for sample in samples:
        if sample.unit not in folds:
            folds[sample.unit] = min(range(count), key=lambda fold: (sizes[fold, sample.label], sizes[fold].sum()))
        sizes[folds[sample.unit], sample.label] += 1
    return np.array([folds[sample.unit] for sample in samples], np.int64)


def read(
    source: Path,
    *,
    labels: Sequence[str] | None = None,
    val: float = 0.2,
    group: str | None = None,
    learnable: bool = True,
) -> Dataset:
    """Read a labeled dataset.

    The source is one of

    - a folder of class folders, searched recursively;
    - a folder of splits, train/ and any of val/ and test/ (or another usual name), each with class folders;
    - a folder of class folders, each with train/ and any of val/ and test/;
    - a .csv or .parquet table with the columns path, label and optionally split and group.

    Without a val split, about the share `val` of train becomes it, by a hash of each name (`split.val_groups`). Images
    of a group, by that column or by what the regular expression `group` finds in their names, stay together.

    Labels are the class names, sorted. With `labels`, those of a bundle, they keep that order and an unknown label is
    refused. What only training needs (two classes, each with images in train) is required unless `labels` are given or
    the dataset need not be `learnable`.

    Raises `DataError` with all problems of the source, and `UsageError` for a `val` outside 0..1 or a `group` that
    finds nothing.
    """
    if not 0.0 < val < 1.0:
        raise UsageError(f"val must lie between 0 and 1, not {val}")
    entries, skipped, problems = _stated(source)
    if group is not None:
        entries = grouped(entries, group, source)
    if labels is not None:
        labels = known_labels(entries, source, labels, problems)
    elif learnable:
        labels = training_labels(entries, source, problems)
    else:
        labels = known_labels(entries, source, sorted({nfc(entry.label) for entry in entries}), problems)
    indices = {label: index for index, label in enumerate(labels)}
    samples = [
        Sample(entry.path, entry.name, indices[nfc(entry.label)], split, entry.group or "")
        for entry, split in zip(entries, assign_splits(entries, val), strict=True)
    ]
    samples.sort(key=lambda sample: sample.name)
    root = source if os.path.isdir(source) else source.parent
    given, drawn = entries[0].split is not None, None if states_val(entries) else val
    return Dataset(root, tuple(labels), tuple(samples), dict(sorted(skipped.items())), given, drawn)


def is_learnable(source: Path, val: float, group: str | None = None) -> bool:
    """Return whether a dataset can be trained on."""
    try:
        read(source, val=val, group=group)
    except DataError:
        return False
    return True


def _stated(source: Path) -> Stated:
    """Return the contents of a source with at least one image."""
    if os.path.isdir(source):
        return read_folders(source, scan(source))
    if not os.path.exists(source):
        raise DataError("no such file or folder", file=source)
    if source.suffix.lower() not in TABLES:
        do = f"give a folder of class folders or a {' or '.join(sorted(TABLES))} table"
        raise DataError("neither a folder nor a table", file=source, do=do)
    return Stated(table.read(source), {}, [])


class FoundImages(NamedTuple):
    """Image files, and the files that were skipped in folders: path to reason."""

    files: list[Path]
    skipped: dict[str, str]


def find_images(sources: Sequence[Path]) -> FoundImages:
    """Return the named files, and the images under the named folders, in that order; those of a folder are sorted.

    A named file is kept whatever its suffix, as often as it is named. Raises `DataError` with all sources that do
    not exist or hold no image.
    """
    found: list[Path] = []
    skipped: dict[str, str] = {}
    problems: list[str] = []
    for source in sources:
        inside = [source]
        if os.path.isdir(source):
            scanned = scan(source)
            inside = [source / image for image in scanned.images]
            skipped.update((str(source / path), reason) for path, reason in scanned.skipped.items())
        if not inside:
            problems.append(f"{source}: a folder without images")
        elif not os.path.exists(source):
            problems.append(f"{source}: no such file or folder")
        found.extend(inside)
    if problems:
        raise DataError(listed(problems, LIMIT))
    return FoundImages(found, skipped)
