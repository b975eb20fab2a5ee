"""Labels of a dataset in a fixed order, with all problems reported at once."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tlkit.errors import DataError
from tlkit.util.text import listed, nearest

LIMIT = 10  # names that a message lists
TABLES = frozenset({".csv", ".parquet"})


class Problem(NamedTuple):
    """A reason that a dataset can't be used, and what to do about it."""

    what: str
    do: str


class Entry(NamedTuple):
    """One image as its source states it. Either all entries of a source have a split or none has."""

    path: Path
    name: str  # relative POSIX path, NFC: what the split follows
    label: str  # as spelled in the source
    split: str | None = None
    group: str | None = None  # images of one group are in one split; None: it is alone

    @property
    def unit(self) -> str:
        """Name of what is split as one: the group, or the image itself."""
        return self.group or self.name


def nfc(text: str) -> str:
    """Return Unicode's composed form; file systems and editors differ in the form they use."""
    return unicodedata.normalize("NFC", text)


def training_labels(entries: Sequence[Entry], source: Path, problems: Sequence[Problem]) -> tuple[str, ...]:
    """Return the labels of a dataset for training, NFC, sorted by code point.

    Raises `DataError` with everything that prevents training on it, including `problems` found before.
    """
    _refuse([*problems, *_name_problems(entries), *_group_problems(entries), *_class_problems(entries, source)], source)
    return tuple(sorted({nfc(entry.label) for entry in entries}))


def known_labels(
    entries: Sequence[Entry], source: Path, labels: Sequence[str], problems: Sequence[Problem]
) -> tuple[str, ...]:
    """Return the labels of a bundle, as given, for a dataset that it is used on.

    Raises `DataError` if the dataset has others, together with the `problems` found before.
    """
    found = [*problems, *_name_problems(entries)]
    unknown = sorted({nfc(entry.label) for entry in entries} - set(labels))
    if unknown:
        what = f"unknown labels: {listed((_with_nearest(label, labels) for label in unknown), LIMIT)}"
        found.append(Problem(what, f"the known labels are {listed(map(repr, labels), LIMIT)}"))
    _refuse(found, source)
    return tuple(labels)


def _refuse(problems: Sequence[Problem], source: Path) -> None:
    """Raise a DataError if there are problems, with each of them and each remedy."""
    if problems:
        do = "; ".join(dict.fromkeys(problem.do for problem in problems))
        raise DataError("; ".join(problem.what for problem in problems), file=source, do=do)


def states_val(entries: Sequence[Entry]) -> bool:
    """Return whether a source states a validation split."""
    return any(entry.split == "val" for entry in entries)


def _with_nearest(label: str, known: Sequence[str]) -> str:
    folded = {_folded(each): each for each in known}
    found = nearest(_folded(label), folded)
    return repr(label) if found is None else f"{label!r} (nearest: {folded[found]!r})"


def _folded(label: str) -> str:
    """Return a label without differences in case, spaces, Unicode form and characters that nobody sees."""
    visible = "".join(each for each in label if unicodedata.category(each) != "Cf")  # as editors leave them
    return nfc(" ".join(visible.split())).casefold()


def _name_problems(entries: Sequence[Entry]) -> list[Problem]:
    """Return problems with names that can't be distinguished or written."""
    problems = []
    repeated = [repr(name) for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if repeated:
        what = f"file names that differ in their Unicode form only: {listed(repeated, LIMIT)}"
        problems.append(Problem(what, "rename one of each pair"))
    labels = sorted({entry.label for entry in entries})
    broken = [repr(label) for label in labels if label != label.encode(errors="ignore").decode()]
    if broken:
        problems.append(Problem(f"class names that are not valid UTF-8: {listed(broken, LIMIT)}", "rename them"))
    for spelling, of in (("in case, spaces or Unicode form only", _folded), ("as text but are one number", _number)):
        groups = defaultdict(list)
        for label in labels:
            groups[of(label)].append(repr(label))
        clashes = [" and ".join(group) for group in groups.values() if len(group) > 1]
        if clashes:
            what = f"class names that differ {spelling}: {listed(clashes, LIMIT)}"
            problems.append(Problem(what, "give one class one name, and different classes different names"))
    return problems


def _group_problems(entries: Sequence[Entry]) -> list[Problem]:
    """Return the problem of groups that the source itself puts into several splits."""
    splits = defaultdict(set)
    for entry in entries:
        if entry.group is not None:
            splits[entry.group].add(entry.split)
    torn = [repr(group) for group, found in splits.items() if len(found) > 1]
    if not torn:
        return []
    return [Problem(f"groups in several splits: {listed(torn, LIMIT)}", "put all images of a group into one split")]


def _number(label: str) -> str:
    """Return a label without the decimals of a whole number, as programs write 1 and 1.0 for one class."""
    return re.sub(r"^(\d+)\.0*$", r"\1", label)


def _class_problems(entries: Sequence[Entry], source: Path) -> list[Problem]:
    """Return problems with classes that can't be learned: too few of them, or too few images."""
    problems = []
    everywhere = sorted({nfc(entry.label) for entry in entries})
    if len(everywhere) == 1:
        problems.append(_one_class(everywhere[0], entries, source))
    train = Counter(nfc(entry.label) for entry in entries if entry.split in (None, "train"))
    absent = [repr(label) for label in everywhere if label not in train]
    if not train:
        splits = " and ".join(sorted({entry.split or "" for entry in entries}))
        problems.append(
            Problem(f"no image is in train: all are in {splits}", "move images to train, or state no splits")
        )
    elif absent:
        what = f"classes without an image in train: {listed(absent, LIMIT)}"
        problems.append(Problem(what, "add images of them to train, or remove them from the other splits"))
    if states_val(entries):
        return problems
    units = defaultdict(set)
    for entry in entries:
        units[nfc(entry.label)].add(entry.unit)
    alone = [label for label in everywhere if len(units[label]) == 1 and train[label]]
    for kind, single in (
        ("one image", [repr(label) for label in alone if train[label] == 1]),
        ("all images in one group", [repr(label) for label in alone if train[label] > 1]),
    ):
        if single:
            what = f"classes with {kind}, which can't be in train and val both: {listed(single, LIMIT)}"
            problems.append(Problem(what, "add other images of them, or remove these classes"))
    return problems


def _one_class(only: str, entries: Sequence[Entry], source: Path) -> Problem:
    """Return the problem of a single class, with the folder or the table that may have been meant."""
    what, do = f"only one class, {only!r}", "add the images of another class"
    if source.is_dir():
        folders = [entry.name.rpartition("/")[0] for entry in entries]
        shared = os.path.commonpath(folders)
        inside = sorted({folder[len(shared) + 1 :].partition("/")[0] for folder in folders} - {""})
        if shared and len(inside) > 1:
            where = f"the folders in {shared}" if "/" in shared else "its folders"
            what = f"{what} ({where} {listed(inside, LIMIT)} may be the classes)"
            return Problem(what, f"give {source / shared} if they are")
        if tables := sorted(path for path in source.glob("*") if path.suffix.lower() in TABLES):
            do = f"give {tables[0]} if it names their labels, or {do}"
    return Problem(f"{what}; at least two folders or labels are needed", do)
