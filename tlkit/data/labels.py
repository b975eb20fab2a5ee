"""Labels of a dataset in a fixed order, with all problems reported at once."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tlkit.errors import DataError
from tlkit.util.text import listed, nearest

LIMIT = 10  # names that a message lists

_FIX = "rename or remove them, or add images"


class Entry(NamedTuple):
    """One image as its source states it. Either all entries of a source have a split or none has."""

    path: Path
    name: str  # relative POSIX path, NFC: what the split follows
    label: str  # as spelled in the source
    split: str | None = None


def nfc(text: str) -> str:
    """Return Unicode's composed form; file systems and editors differ in the form they use."""
    return unicodedata.normalize("NFC", text)


def training_labels(entries: Sequence[Entry], source: Path, problems: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of a dataset for training, NFC, sorted by code point.

    Raises `DataError` with everything that prevents training on it, including `problems` found before.
    """
    found = [*problems, *_name_problems(entries), *_class_problems(entries)]
    if found:
        raise DataError("; ".join(found), file=source, do=_FIX)
    return tuple(sorted({nfc(entry.label) for entry in entries}))


def known_labels(
    entries: Sequence[Entry], source: Path, labels: Sequence[str], problems: Sequence[str]
) -> tuple[str, ...]:
    """Return the labels of a bundle, as given, for a dataset that it is used on.

    Raises `DataError` if the dataset has others, together with the `problems` found before.
    """
    found = [*problems, *_name_problems(entries)]
    unknown = sorted({nfc(entry.label) for entry in entries} - set(labels))
    if unknown:
        found.append(f"unknown labels: {listed((_with_nearest(label, labels) for label in unknown), LIMIT)}")
    if found:
        do = f"the known labels are {listed(map(repr, labels), LIMIT)}" if unknown else _FIX
        raise DataError("; ".join(found), file=source, do=do)
    return tuple(labels)


def states_val(entries: Sequence[Entry]) -> bool:
    """Return whether a source states a validation split."""
    return any(entry.split == "val" for entry in entries)


def _with_nearest(label: str, known: Sequence[str]) -> str:
    folded = {_folded(each): each for each in known}
    found = nearest(_folded(label), folded)
    return repr(label) if found is None else f"{label!r} (nearest: {folded[found]!r})"


def _folded(label: str) -> str:
    """Return a label without differences in case, spaces and Unicode form."""
    return nfc(" ".join(label.split())).casefold()


def _name_problems(entries: Sequence[Entry]) -> list[str]:
    """Return problems with names that can't be distinguished or written."""
    problems = []
    repeated = [repr(name) for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if repeated:
        problems.append(f"file names that differ in their Unicode form only: {listed(repeated, LIMIT)}")
    labels = sorted({entry.label for entry in entries})
    broken = [repr(label) for label in labels if label != label.encode(errors="ignore").decode()]
    if broken:
        problems.append(f"class names that are not valid UTF-8: {listed(broken, LIMIT)}")
    for spelling, of in (("in case, spaces or Unicode form only", _folded), ("as text but are one number", _number)):
        groups = defaultdict(list)
        for label in labels:
            groups[of(label)].append(repr(label))
        clashes = [" and ".join(group) for group in groups.values() if len(group) > 1]
        if clashes:
            problems.append(f"class names that differ {spelling}: {listed(clashes, LIMIT)}")
    return problems


def _number(label: str) -> str:
    """Return a label without the decimals of a whole number, as programs write 1 and 1.0 for one class."""
    return re.sub(r"^(\d+)\.0*$", r"\1", label)


def _class_problems(entries: Sequence[Entry]) -> list[str]:
    """Return problems with classes that can't be learned: too few of them, or too few images."""
    problems = []
    everywhere = sorted({nfc(entry.label) for entry in entries})
    if len(everywhere) == 1:
        inside = {entry.name.split("/")[1] for entry in entries if entry.name.count("/") > 1}
        hint = f" (its folders {listed(sorted(inside), LIMIT)} may be the classes)" if len(inside) > 1 else ""
        problems.append(f"only one class, {everywhere[0]!r}{hint}; at least two folders or labels are needed")
    train = Counter(nfc(entry.label) for entry in entries if entry.split in (None, "train"))
    absent = [repr(label) for label in everywhere if label not in train]
    if absent:
        problems.append(f"classes without an image in train: {listed(absent, LIMIT)}")
    single = [repr(label) for label in everywhere if train[label] == 1]
    if single and not states_val(entries):
        problems.append(f"classes with one image, which can't be in train and val both: {listed(single, LIMIT)}")
    return problems
