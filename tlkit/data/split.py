"""What a source states of its images -> labels in a fixed order, and a split that never moves."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tlkit.errors import DataError
from tlkit.util.text import listed, nearest

LIMIT = 10  # names that a message lists

# The split that a folder's name, or an entry in a table, stands for.
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Row(NamedTuple):
    """One image as the source states it. Either all rows of a source have a split or none has."""

    path: Path
    name: str  # relative POSIX path, NFC: what the split follows
    label: str  # as spelled in the source
    split: str | None = None


def nfc(text: str) -> str:
    """Unicode's composed form; file systems and editors differ in which form they hand out."""
    return unicodedata.normalize("NFC", text)


def trained_labels(rows: Sequence[Row], source: Path, problems: Sequence[str]) -> tuple[str, ...]:
    """The labels of a set to learn from, NFC, sorted by code point.

    Raises `DataError` with all that speaks against learning from it, `problems` found before included.
    """
    found = [*problems, *_name_problems(rows), *_class_problems(rows)]
    if found:
        raise DataError("; ".join(found), file=source, do=_MEND)
    return tuple(sorted({nfc(row.label) for row in rows}))


def known_labels(rows: Sequence[Row], source: Path, labels: Sequence[str], problems: Sequence[str]) -> tuple[str, ...]:
    """The labels of a bundle, as given, for a set that it is used on.

    Raises `DataError` where the set has others, together with the `problems` found before.
    """
    found = [*problems, *_name_problems(rows)]
    unknown = sorted({nfc(row.label) for row in rows} - set(labels))
    if unknown:
        found.append(f"unknown labels: {listed((_with_nearest(label, labels) for label in unknown), LIMIT)}")
    if found:
        do = f"the known labels are {listed(map(repr, labels), LIMIT)}" if unknown else _MEND
        raise DataError("; ".join(found), file=source, do=do)
    return tuple(labels)


_MEND = "rename or remove them, or add images"


def _with_nearest(label: str, known: Sequence[str]) -> str:
    folded = {_folded(each): each for each in known}
    found = nearest(_folded(label), folded)
    return repr(label) if found is None else f"{label!r} (nearest: {folded[found]!r})"


def _folded(label: str) -> str:
    """What remains of a label for someone who overlooks case, spaces and Unicode forms."""
    return nfc(" ".join(label.split())).casefold()


def _name_problems(rows: Sequence[Row]) -> list[str]:
    """Names that can't be told apart or written down."""
    problems = []
    twins = [repr(name) for name, count in Counter(row.name for row in rows).items() if count > 1]
    if twins:
        problems.append(f"file names that differ in their Unicode form only: {listed(twins, LIMIT)}")
    labels = sorted({row.label for row in rows})
    broken = [repr(label) for label in labels if label != label.encode(errors="ignore").decode()]
    if broken:
        problems.append(f"class names that are not valid UTF-8: {listed(broken, LIMIT)}")
    alike = defaultdict(list)
    for label in labels:
        alike[_folded(label)].append(repr(label))
    clashes = [" and ".join(group) for group in alike.values() if len(group) > 1]
    if clashes:
        problems.append(f"class names that differ in case, spaces or Unicode form only: {listed(clashes, LIMIT)}")
    return problems


def _class_problems(rows: Sequence[Row]) -> list[str]:
    """Classes that can't be learnt: too few of them, or too few images where they are needed."""
    problems = []
    everywhere = sorted({nfc(row.label) for row in rows})
    if len(everywhere) == 1:
        problems.append(f"only one class, {everywhere[0]!r}, where at least two folders or labels are needed")
    learnt = Counter(nfc(row.label) for row in rows if row.split in (None, "train"))
    absent = [repr(label) for label in everywhere if label not in learnt]
    if absent:
        problems.append(f"classes without an image in train: {listed(absent, LIMIT)}")
    single = [repr(label) for label in everywhere if learnt[label] == 1]
    if single and not _states_val(rows):
        problems.append(f"classes with one image, which can't be in train and val both: {listed(single, LIMIT)}")
    return problems


def _states_val(rows: Sequence[Row]) -> bool:
    return any(row.split == "val" for row in rows)


def assign(rows: Sequence[Row], val: float) -> list[str]:
    """The split of each row, in order: as stated, and where no val is stated, hashed out of train.

    An image is in val when the SHA-256 of its name, as a fraction of 2^64, is below `val`. That depends on
    nothing but its name: adding, removing or reordering others moves no image, and the share is `val` on
    average. One exception, so that each class of two or more can be learnt and judged: where the threshold puts
    a class wholly on one side, the image nearest to the threshold crosses over.
    """
    splits = [row.split or "train" for row in rows]
    if _states_val(rows):
        return splits
    classes = defaultdict(list)
    for index, row in enumerate(rows):
        if splits[index] == "train":
            classes[nfc(row.label)].append((fraction(row.name), index))
    for members in classes.values():
        members.sort()
        below = sum(position < val for position, _ in members)
        if len(members) > 1:
            below = min(max(below, 1), len(members) - 1)
        for _, index in members[:below]:
            splits[index] = "val"
    return splits


def fraction(name: str) -> float:
    """A number from 0 to 1 that follows from the name alone, evenly spread over names."""
    # Names that are not valid UTF-8 reach Python as surrogates; this gives their bytes back.
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
