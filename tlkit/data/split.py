"""Assign images to splits by a hash of their names or groups, so that no image ever changes its split."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tlkit.data.labels import Entry, nfc, states_val
from tlkit.errors import UsageError

# The split that the name of a folder, or an entry in a table, stands for.
SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}


def assign_splits(entries: Sequence[Entry], val: float) -> list[str]:
    """Return the split of each entry: as stated, and if no val is stated, hashed out of train (see `val_groups`)."""
    splits = [entry.split or "train" for entry in entries]
    if states_val(entries):
        return splits
    train = [index for index, split in enumerate(splits) if split == "train"]
    chosen = val_groups([(entries[index].unit, nfc(entries[index].label)) for index in train], val)
    for index in train:
        if entries[index].unit in chosen:
            splits[index] = "val"
    return splits


def val_groups(members: Iterable[tuple[str, str | int]], val: float) -> set[str]:
    """Return the groups that are in val, given the group and the label of each image; an image alone is a group.

    A group is in val if the SHA-256 of its name, as a fraction of 2^64, is below `val`. That depends on nothing but its
    name: adding, removing or reordering others moves none, and the share is `val` on average. One exception, so that
    each class of two groups or more can be trained and validated: if the threshold puts all of a class on one side, the
    group nearest to the threshold changes sides.
    """
    classes = defaultdict(set)
    for group, label in members:
        classes[label].add(group)
    position = {group: (hash_fraction(group), group) for groups in classes.values() for group in groups}
    chosen = {group for group, (fraction, _) in position.items() if fraction < val}
    for train_counts in (False, True):  # at last no class may be without training images; without val it can be
        for _, groups in sorted(classes.items()):
            if groups <= chosen and (len(groups) > 1 or train_counts):
                chosen.remove(max(groups, key=position.__getitem__))
            elif len(groups) > 1 and not train_counts and not groups & chosen:
                chosen.add(min(groups, key=position.__getitem__))
    return chosen


def grouped(entries: Sequence[Entry], pattern: str, source: Path) -> list[Entry]:
    """Return the entries with the group that a regular expression finds in the name of each; others are alone.

    The group is the text of the expression's own groups, as in `(patient\\d+)_`, or of all that it matches. Raises
    `UsageError` for an expression that is not valid or finds nothing, and where the source states groups.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"not a regular expression: {error}", do=f"change --group {pattern!r}") from error
    if any(entry.group for entry in entries):
        raise UsageError("the table has a column group", file=source, do="leave out --group")
    found = [expression.search(entry.name) for entry in entries]
    if not any(found):
        what = f"--group {pattern!r} finds nothing in the names, such as {entries[0].name}"
        raise UsageError(what, file=source, do="write a regular expression for the part that copies share")
    return [
        entry
        if match is None
        else entry._replace(group="/".join(part or "" for part in match.groups()) or match[0] or None)
        for entry, match in zip(entries, found, strict=True)
    ]


def hash_fraction(name: str) -> float:
    """Return a number from 0 to 1 that follows from the name alone, uniform over names."""
    # Names that are not valid UTF-8 reach Python as surrogates; this restores their bytes.
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
