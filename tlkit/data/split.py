"""Assign images to splits by a hash of their names, so that no image ever changes its split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from tlkit.data.labels import Entry, nfc, states_val

# The split that the name of a folder, or an entry in a table, stands for.
SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}


def assign_splits(entries: Sequence[Entry], val: float) -> list[str]:
    """Return the split of each entry: as stated, and if no val is stated, hashed out of train.

    An image is in val if the SHA-256 of its name, as a fraction of 2^64, is below `val`. That depends on nothing but
    its name: adding, removing or reordering others moves no image, and the share is `val` on average. One exception, so
    that each class of two or more can be trained and validated: if the threshold puts all of a class on one side, the
    image nearest to the threshold changes sides.
    """
    splits = [entry.split or "train" for entry in entries]
    if states_val(entries):
        return splits
    classes = defaultdict(list)
    for index, entry in enumerate(entries):
        if splits[index] == "train":
            classes[nfc(entry.label)].append((hash_fraction(entry.name), index))
    for members in classes.values():
        members.sort()
        below = sum(position < val for position, _ in members)
        if len(members) > 1:
            below = min(max(below, 1), len(members) - 1)
        for _, index in members[:below]:
            splits[index] = "val"
    return splits


def hash_fraction(name: str) -> float:
    """Return a number from 0 to 1 that follows from the name alone, uniform over names."""
    # Names that are not valid UTF-8 reach Python as surrogates; this restores their bytes.
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
