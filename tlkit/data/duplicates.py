"""Find files with the same bytes that are in two splits or have two labels."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tlkit.data.dataset import Dataset, Sample
from tlkit.errors import DataError
from tlkit.util.files import sha256
from tlkit.util.text import counted

Pair = tuple[str, str]  # names of two images


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Pairs of identical files, each file with the first one like it: in two splits, and with two labels."""

    leakage: tuple[Pair, ...] = ()
    label_conflicts: tuple[Pair, ...] = ()

    def lines(self) -> Iterator[str]:
        """Yield what is wrong, for people."""
        if self.leakage:
            first, second = self.leakage[0]
            files = counted(len(self.leakage), "file")
            yield f"leakage: {files} again in another split, such as {first} = {second}; accuracies will be too high"
        if self.label_conflicts:
            first, second = self.label_conflicts[0]
            files = counted(len(self.label_conflicts), "file")
            yield f"label conflict: {files} again with another label, such as {first} = {second}"

    def check(self) -> None:
        """Raise a DataError if there are any."""
        for line in self.lines():
            raise DataError(line, do="remove the copies that are wrong, or leave out --strict")


def find_duplicates(dataset: Dataset) -> Duplicates:
    """Return the identical files of a dataset; only files of the same size are read. Unreadable ones are left out."""
    leakage, conflicts = list[Pair](), list[Pair]()
    for same in _identical(dataset.samples):
        first, *others = same
        leakage.extend((first.name, each.name) for each in others if each.split != first.split)
        conflicts.extend((first.name, each.name) for each in others if each.label != first.label)
    return Duplicates(tuple(sorted(leakage)), tuple(sorted(conflicts)))


def _identical(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    sizes = defaultdict(list)
    for sample in samples:
        try:
            found = os.stat(sample.path)
        except OSError:
            continue
        sizes[found.st_size].append((sample, found.st_mtime_ns))
    for size, same_size in sizes.items():
        hashes = defaultdict(list)
        for sample, modified in same_size if size and len(same_size) > 1 else ():
            hashes[_sha256(sample.path, size, modified)].append(sample)
        yield from (same for digest, same in hashes.items() if digest and len(same) > 1)


@functools.cache  # by size and time as well: advice, trials and training look at the same files in turn
def _sha256(file: Path, _size: int, _modified: int) -> str:
    try:
        return sha256(file)
    except OSError:
        return ""
