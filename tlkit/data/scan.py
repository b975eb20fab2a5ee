"""Scan a folder for images: each folder is read once, whatever links it contains, without a stat per file."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tlkit.data.decoding import HEAD, OTHER_SUFFIXES, SUFFIXES, format_of
from tlkit.errors import DataError
from tlkit.util.text import counted

# What operating systems and network storage add.
_SYSTEM = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "system volume information", "lost+found"})
_SYSTEM |= {"$recycle.bin", "recycler", "#recycle", "@recycle", "@eadir", "#snapshot", "@sharebin", "@tmp", "@__thumb"}
_BUNDLE = frozenset({"bundle.json", "trunk.safetensors", "head.safetensors"})


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
    """Return all images under `root`, by suffix, recursively.

    Links to folders are followed after all real folders, so that the real one of several ways to a folder counts, and a
    loop ends where it began. Raises `DataError` for a folder that can't be read: its content might matter.
    """
    found = Scan([], [], {})
    real, links = [""], list[str]()
    seen: set[tuple[int, int]] = set()
    while real or links:
        folder = real.pop() if real else heapq.heappop(links)  # links in sorted order, whatever their order on disk
        try:
            if folder:
                found.folders.append(folder)
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:
                found.skipped[folder] = "a link to a folder that is read already"
                continue
            seen.add((status.st_dev, status.st_ino))
            more, linked = _scan_folder(root, folder, found)
        except OSError as error:
            raise DataError(f"can't be read ({error.strerror})", file=root / folder) from error
        real.extend(more)
        for link in linked:
            heapq.heappush(links, link)
    found.images.sort()
    found.folders.sort()
    return found


def _scan_folder(root: Path, folder: str, found: Scan) -> tuple[list[str], list[str]]:
    """Add the entries of one folder to `found`; return the real folders and the links to folders in it."""
    real: list[str] = []
    links: list[str] = []
    with os.scandir(root / folder) as scanned:
        entries = list(scanned)
    if _BUNDLE.issubset(entry.name for entry in entries):
        if not folder:
            raise DataError("a bundle that tlkit wrote, not images", file=root)
        found.folders.remove(folder)
        found.skipped[folder] = "a bundle that tlkit wrote"
        return real, links
    for entry in entries:
        if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM:
            continue
        path = f"{folder}/{entry.name}" if folder else entry.name
        kind = _kind(entry)
        if kind == "folder":
            (links if entry.is_symlink() else real).append(path)
        elif kind == "file" and _is_image(root / path):
            found.images.append(path)
        else:
            found.skipped[path] = "not an image" if kind == "file" else kind
    return real, links


def _is_image(file: Path) -> bool:
    """Return whether a file counts as an image: by its suffix, or by its first bytes if it has none.

    Images in a format that is not decoded count as well: they are rejected by name.
    """
    suffix = file.suffix[1:].lower()
    if suffix:
        return suffix in SUFFIXES or suffix in OTHER_SUFFIXES
    try:
        with file.open("rb") as opened:
            return format_of(opened.read(HEAD)) is not None
    except OSError:
        return False


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "folder", "file", or the reason why it is neither. Only links cost a stat."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself, or through a folder that is not accessible
        pass
    return "a broken link" if entry.is_symlink() else "not a regular file"
