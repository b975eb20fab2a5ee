"""Patterns of names that stand for several places: shell wildcards, and ranges of numbers as in {0000..0123}."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

from tlkit.errors import DataError, UsageError
from tlkit.util.files import is_address

MOST = 1_000_000
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WILD = re.compile(r"[*?\[]")


def is_pattern(name: str) -> bool:
    """Return whether a name stands for several: it has wildcards or a range, and is not the name of something there."""
    return not os.path.exists(name) and (_WILD.search(name) or _RANGE.search(name)) is not None


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern stands for, sorted; a name without wildcards, or of something there, is one.

    Raises DataError where nothing matches, and UsageError for a range that ends before it begins or is too long.
    """
    if os.path.exists(pattern):
        return [pattern]
    names = []
    for name in _ranges(pattern):
        if not _WILD.search(name) or is_address(name):
            names.append(name)
        elif found := sorted(glob.glob(name, recursive=True)):
            names += found
        else:
            raise DataError("nothing has a name like this", file=name)
    return names


def _ranges(pattern: str) -> Iterator[str]:
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < MOST:
        raise UsageError(f"{found[0]} is not a range of at most {MOST:,} numbers", file=pattern)
    for number in range(first, last + 1):
        yield from _ranges(f"{pattern[: found.start()]}{number:0{len(found[1])}}{pattern[found.end() :]}")
