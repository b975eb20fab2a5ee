"""Scan a folder for images: each folder is read once, whatever links it contains, without a stat per file."""

from __future__ import annotations

import heapq
import os
from pathlib import Path
from typing import NamedTuple

from tlkit.data.decoding import SUFFIXES
from tlkit.errors import DataError

_SYSTEM_FILES = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"})


class Scan(NamedTuple):
    """Sorted paths relative to the folder, POSIX style, spelled as on disk."""

    images: list[str]
    folders: list[str]  # including empty ones and links
    skipped: list[str]  # one line each: path and reason; hidden files and files of operating systems are left out


def scan(root: Path) -> Scan:
    """Return all images under `root`, by suffix, recursively.

    Links to folders are followed after all real folders, so that the real one of several ways to a folder counts, and a
    loop ends where it began. Raises `DataError` for a folder that can't be read: its content might matter.
    """
    found = Scan([], [], [])
    real, links = [""], list[str]()
    seen: set[tuple[int, int]] = set()
    while real or links:
        folder = real.pop() if real else heapq.heappop(links)  # links in sorted order, whatever their order on disk
        try:
            if folder:
                found.folders.append(folder)
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:
                found.skipped.append(f"{folder}: a link to a folder that is read already")
                continue
            seen.add((status.st_dev, status.st_ino))
            more, linked = _scan_folder(root, folder, found)
        except OSError as error:
            raise DataError(f"can't be read ({error.strerror})", file=root / folder) from error
        real.extend(more)
        for link in linked:
            heapq.heappush(links, link)
    for paths in found:
        paths.sort()
    return found


def _scan_folder(root: Path, folder: str, found: Scan) -> tuple[list[str], list[str]]:
    """Add the entries of one folder to `found`; return the real folders and the links to folders in it."""
    real: list[str] = []
    links: list[str] = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM_FILES:
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            kind = _kind(entry)
            if kind == "folder":
                (links if entry.is_symlink() else real).append(path)
            elif kind != "file":
                found.skipped.append(f"{path}: {kind}")
            elif os.path.splitext(entry.name)[1][1:].lower() in SUFFIXES:
                found.images.append(path)
            else:
                found.skipped.append(f"{path}: not an image")
    return real, links


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
