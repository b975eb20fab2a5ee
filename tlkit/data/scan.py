"""Scan a folder for images, without a stat per file, and count the files of a source."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tlkit.data.decoding import HEAD, OTHER_SUFFIXES, SUFFIXES, format_of
from tlkit.errors import DataError
from tlkit.util.text import counted
from tlkit.util.walk import OWN, walk


@dataclass(frozen=True, slots=True)
class FileCounts:
    """Numbers of files: those that were read, and by suffix the rejected and the skipped ones.

    With the labeled images of other splits, which were not asked for, these are all files of the source.
    """

    read: int
    rejected: Mapping[str, int]
    skipped: Mapping[str, int]
    other_splits: int = 0

    @classmethod
    def of(cls, read: int, rejected: Iterable[str], skipped: Iterable[str], other_splits: int = 0) -> FileCounts:
        """Count files by the suffixes of their names."""
        return cls(read, _by_suffix(rejected), _by_suffix(skipped), other_splits)

    @property
    def complete(self) -> bool:
        """True if all files were read."""
        return not (self.rejected or self.skipped)

    def __str__(self) -> str:
        parts = [f"{self.read:,} read"]
        if self.other_splits:
            parts.append(f"{self.other_splits:,} in other splits")
        for what, counts in (("rejected", self.rejected), ("skipped", self.skipped)):
            if counts:
                suffixes = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.items())
                parts.append(f"{sum(counts.values()):,} {what} ({suffixes})")
        total = self.read + self.other_splits + sum(self.rejected.values()) + sum(self.skipped.values())
        return f"{counted(total, 'file')}: {', '.join(parts)}"


def _by_suffix(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(os.path.splitext(name)[1].lower() or "without a suffix" for name in names).most_common())


class Scan(NamedTuple):
    """Sorted paths relative to the folder, POSIX style, spelled as on disk."""

    images: list[str]
    folders: list[str]  # including empty ones and links
    skipped: dict[str, str]  # path to reason; hidden files and those of operating systems are left out


def scan(root: Path) -> Scan:
    """Return all images under `root`, by suffix, recursively; see `tlkit.util.walk` for links.

    Raises `DataError` for a folder that can't be read: its content might matter.
    """
    found = Scan([], [], {})
    try:
        for path, kind in walk(root):
            if kind == "folder":
                found.folders.append(path)
            elif kind == "file" and is_image(root / path):
                found.images.append(path)
            elif kind in OWN and not path:
                raise DataError(f"{kind}, not images", file=root)
            else:
                found.skipped[path] = "not an image" if kind == "file" else kind
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", file=error.filename or root) from error
    found.images.sort()
    found.folders.sort()
    return found


def is_image(file: Path) -> bool:
    """Return whether a file counts as an image: by its suffix, or by its first bytes if it has none.

    Images in a format that is not decoded count as well: they are rejected by name.
    """
    known = is_image_name(file.name)
    if known is not None:
        return known
    try:
        with file.open("rb") as opened:
            return format_of(opened.read(HEAD)) is not None
    except OSError:
        return False


def is_image_name(name: str) -> bool | None:
    """Return whether a file of this name counts as an image; None if the name has no suffix."""
    suffix = os.path.splitext(name)[1][1:].lower()
    return suffix in SUFFIXES or suffix in OTHER_SUFFIXES if suffix else None
