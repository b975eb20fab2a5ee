"""The images under a folder: each folder read once, whatever links lie in it, and no file asked for its status."""

from __future__ import annotations

import heapq
import os
from pathlib import Path
from typing import NamedTuple

from tlkit.data.preprocessing import SUFFIXES
from tlkit.errors import DataError

_LITTER = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"})  # what systems leave in folders


class Listing(NamedTuple):
    """Sorted paths relative to the folder, POSIX style, spelled as on disk."""

    images: list[str]
    folders: list[str]  # empty ones and links included
    skipped: list[str]  # one line each: path and reason; hidden files and system litter are not worth a line


def walk(root: Path) -> Listing:
    """All images under `root`, by suffix, recursively.

    Links to folders are followed after all real folders, so that of several ways to a folder the real one
    counts, and a loop ends where it began. Raises `DataError` for a folder that can't be read: what is in it
    might matter.
    """
    listing = Listing([], [], [])
    real, links = [""], list[str]()
    seen: set[tuple[int, int]] = set()
    while real or links:
        folder = real.pop() if real else heapq.heappop(links)  # links in sorted order, whatever order they came in
        try:
            if folder:
                listing.folders.append(folder)
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:
                listing.skipped.append(f"{folder}: a link to a folder that is read already")
                continue
            seen.add((status.st_dev, status.st_ino))
            more, linked = _read(root, folder, listing)
        except OSError as error:
            raise DataError(f"can't be read ({error.strerror})", file=root / folder) from error
        real.extend(more)
        for link in linked:
            heapq.heappush(links, link)
    for paths in listing:
        paths.sort()
    return listing


def _read(root: Path, folder: str, listing: Listing) -> tuple[list[str], list[str]]:
    """Enter what lies directly in one folder into the listing; the real folders and the links to folders in it."""
    real: list[str] = []
    links: list[str] = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.casefold() in _LITTER:
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            kind = _kind(entry)
            if kind == "folder":
                (links if entry.is_symlink() else real).append(path)
            elif kind != "file":
                listing.skipped.append(f"{path}: {kind}")
            elif is_image(entry.name):
                listing.images.append(path)
            else:
                listing.skipped.append(f"{path}: not an image")
    return real, links


def _kind(entry: os.DirEntry[str]) -> str:
    """ "folder", "file", or why it is neither. Only links cost a look at the disk."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself, or through a folder that is closed to us
        pass
    return "a broken link" if entry.is_symlink() else "not a regular file"


def is_image(name: str) -> bool:
    """Whether the suffix, in any case, is that of a format that `images.load` decodes."""
    _, dot, suffix = name.rpartition(".")
    return bool(dot) and suffix.lower() in SUFFIXES
