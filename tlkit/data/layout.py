"""The layout of a folder: class folders, splits with class folders, or classes with split folders.

A folder whose meaning is not certain is refused: a split that is taken for a class gives good figures and a useless
classifier.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tlkit.data.labels import LIMIT, Entry, Problem, nfc
from tlkit.data.scan import Scan
from tlkit.data.split import SPLITS
from tlkit.errors import DataError
from tlkit.util.text import counted, listed
from tlkit.util.walk import OWN

_TABLE = "name path, label and split of each image in a table"


class Stated(NamedTuple):
    """Contents of a source: entries, skipped files with the reason, and problems."""

    entries: list[Entry]
    skipped: dict[str, str]
    problems: list[Problem]


def read_folders(root: Path, found: Scan) -> Stated:
    """Return the labeled images of a folder. Raises `DataError` if it holds none, or its layout is ambiguous."""
    inside = defaultdict(list)
    for image in found.images:
        inside[image.partition("/")[0]].append(image)
    tops = {folder: _Top(folder, inside[folder]) for folder in found.folders if "/" not in folder}
    stated = Stated([], dict(found.skipped), [])
    splits = _split_folders(root, tops)
    if splits:
        for base, split in splits.items():
            _read_classes(root, found, tops[base].inner(split), split, stated)
        known = tuple(f"{base}/" for base in splits)
        beside = (image for image in found.images if not image.startswith(known))
        stated.skipped.update((image, "not in the folder of a split") for image in beside)
    elif _has_split_folders(tops.values()):
        _read_split_folders(root, found, stated)
    else:
        _check_classes(root, tops.values())
        _read_classes(root, found, "", None, stated)
    if not stated.entries:
        what = "images, but no class folders with images" if found.images else "no images"
        raise DataError(f"holds {what}", file=root, do="put the images of each class into a folder of its own")
    return stated


class _Top:
    """A folder directly under the root: its images, and the names of the folders in it that hold them."""

    def __init__(self, name: str, images: Sequence[str]) -> None:
        self.name, self.images = name, images
        parts = [image.split("/") for image in images]
        self.folders = frozenset(part[1] for part in parts if len(part) > 2)
        self.nested = bool(parts) and all(len(part) > 2 for part in parts)  # no image lies directly in it

    def split(self) -> str | None:
        """Return the split that the folder stands for: by its whole name, or by a word of it if its images are nested.

        A folder with images of its own, such as a class `train_station`, is a split by its whole name alone.
        """
        return SPLITS.get(self.name.casefold()) or (_split_in(self.name) if self.nested else None)

    def inner(self, split: str) -> str:
        """Return the folder that holds the class folders: some archives repeat the split, as in seg_train/seg_train."""
        only = next(iter(self.folders)) if self.nested and len(self.folders) == 1 else ""
        return f"{self.name}/{only}" if _split_in(only) == split else self.name


def _split_in(name: str) -> str | None:
    """Return the split that a word of a name stands for, as in seg_train or test-images; None if there is not one."""
    found = {SPLITS[word] for word in re.split(r"[\W\d_]+", name.casefold()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def _split_folders(root: Path, tops: dict[str, _Top]) -> dict[str, str]:
    """Return the split of each folder directly under the root; empty if they are not splits."""
    splits = {name: split for name, top in tops.items() if (split := top.split()) is not None}
    others = [top for name, top in tops.items() if name not in splits and top.images]
    names, exact = list(splits.values()), [name for name in splits if name.casefold() in SPLITS]
    if not exact and "train" not in names:
        return {}  # such as the classes test_tube and bus
    nested = all(tops[name].nested for name in splits)
    if len(set(names)) < len(names) and (nested or "train" in names):
        what = f"several folders for the same split: {listed(splits, LIMIT)}"
        raise DataError(what, file=root, do=f"keep one for each, or {_TABLE}")
    if "train" in names and len(names) > 1:
        return splits
    if not nested or not exact:
        return {}
    if others:
        base = exact[0]
        classes, beside = listed(sorted(tops[base].folders), LIMIT), listed((top.name for top in others), LIMIT)
        what = f"{base}/ looks like a split with the classes {classes}, and {beside} with images lies beside it"
        raise DataError(what, file=root, do=f"give {root / base}, move the rest elsewhere, or {_TABLE}")
    return splits


def _has_split_folders(tops: Iterable[_Top]) -> bool:
    """Return whether each class folder holds the folders of splits, as in ants/train and ants/val."""
    with_images = [top for top in tops if top.images]
    inside = {folder.casefold() for top in with_images for folder in top.folders}
    return (
        all(top.nested for top in with_images)
        and "train" in {SPLITS.get(folder) for folder in inside}
        and all(folder in SPLITS for folder in inside)
    )


def _read_split_folders(root: Path, found: Scan, stated: Stated) -> None:
    """Add the images of class folders that hold split folders to `stated`."""
    for image in found.images:
        parts = image.split("/")
        if len(parts) > 2:
            stated.entries.append(Entry(root / image, nfc(image), parts[0], SPLITS[parts[1].casefold()]))
        else:
            stated.skipped[image] = "beside the class folders"


def _check_classes(root: Path, tops: Iterable[_Top]) -> None:
    """Raise a DataError if the folders hold the same folders, as folds do; they are not classes then."""
    with_images = [top for top in tops if top.images]
    if len(with_images) < 2 or not all(top.nested for top in with_images):
        return
    shared = frozenset.intersection(*(top.folders for top in with_images))
    if shared and any(len(top.folders) > 1 for top in with_images):
        folders = listed((top.name for top in with_images), LIMIT)
        what = f"{folders} hold the same folders ({listed(sorted(shared), LIMIT)}), as splits and folds do"
        raise DataError(
            what, file=root, do=f"if they are, call them train, val and test; if they are classes, {_TABLE}"
        )


def _read_classes(root: Path, found: Scan, base: str, split: str | None, stated: Stated) -> None:
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
            stated.skipped[image] = "beside the class folders"
    empty -= {label for label in empty if _holds_own(f"{prefix}{label}/", found.skipped)}
    if empty:
        folders = listed((_with_files(prefix + label, stated.skipped) for label in sorted(empty)), LIMIT)
        what = f"class folders without an image of their own: {folders}"
        stated.problems.append(Problem(what, "put images into them, or remove the folders"))
    if not classes:
        do = f"put the images of each class into a folder of its own in {prefix}, or move it elsewhere"
        stated.problems.append(Problem(f"no class folders in {prefix}", do))


def _holds_own(prefix: str, skipped: Mapping[str, str]) -> bool:
    """Return whether a folder without images holds what tlkit wrote and nothing else."""
    reasons = {reason for path, reason in skipped.items() if path.startswith(prefix)}
    return bool(reasons) and reasons <= OWN.keys()


def _with_files(folder: str, skipped: Mapping[str, str]) -> str:
    """Return a folder with the number of its files that are no images, if it has some."""
    count = sum(path.startswith(f"{folder}/") for path in skipped)
    return f"{folder} ({counted(count, 'file')} of other kinds)" if count else folder
