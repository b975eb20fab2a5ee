"""Walk a folder: each folder is read once, whatever links it contains, and entries come one by one."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# What operating systems and network storage add.
_SYSTEM = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "system volume information", "lost+found"})
_SYSTEM |= {"$recycle.bin", "recycler", "recycled", "found.000", "#recycle", "@recycle", "@eadir", "@synoresource"}
_SYSTEM |= {"#snapshot", "~snapshot", "@recently-snapshot", "@sharebin", "@tmp", "@__thumb", "icon\r"}
_SYSTEM |= {"network trash folder", "temporary items", "thevolumesettingsfolder"}
# What tlkit writes, and the files that tell.
OWN = {
    "a bundle that tlkit wrote": ("bundle.json", "trunk.safetensors", "head.safetensors"),
    "an export that tlkit wrote": ("manifest.json", "model.onnx"),
    "features that tlkit wrote": ("_job/job.json",),
    "a model of a Triton repository": ("config.pbtxt",),
}
LINK = "a link to a folder"


class Entry(NamedTuple):
    """Entry of a folder: its path relative to the root, POSIX style, spelled as on disk, and what it is."""

    path: str
    kind: str  # "file", "folder", or the reason why it is neither


def walk(root: Path) -> Iterator[Entry]:
    """Yield what is under `root`, recursively and in no order, without hidden files and those of operating systems.

    Links to folders are followed after all real folders, so that the real one of several ways to a folder counts, and a
    loop ends where it began. Raises OSError, with the folder's name, for a folder that can't be read.
    """
    real, links = [""], list[str]()
    seen: set[tuple[int, int]] = set()
    while real or links:
        folder = real.pop() if real else heapq.heappop(links)  # links in sorted order, whatever their order on disk
        try:
            status = os.stat(root / folder)
            number = (status.st_dev, status.st_ino)
            for entry in _entries(root, folder, again=number in seen):
                if entry.kind == "folder" and entry.path != folder:
                    real.append(entry.path)
                elif entry.kind == LINK:
                    heapq.heappush(links, entry.path)
                else:
                    yield entry
            seen.add(number)
        except OSError as error:
            error.filename = error.filename or str(root / folder)
            raise


def _entries(root: Path, folder: str, *, again: bool) -> Iterator[Entry]:
    """Yield one folder and, unless it was read already or tlkit wrote it, what is in it."""
    for kind, names in OWN.items() if not again else ():
        if all((root / folder / name).exists() for name in names):
            yield Entry(folder, kind)
            return
    if folder:
        yield Entry(folder, "folder")
    if again:
        yield Entry(folder, "a link to a folder that is read already")
        return
    with os.scandir(root / folder) as scanned:
        for entry in scanned:
            if not (entry.name.startswith(".") or entry.name.casefold() in _SYSTEM):
                kind = _kind(entry)
                linked = kind == "folder" and entry.is_symlink()
                yield Entry(f"{folder}/{entry.name}" if folder else entry.name, LINK if linked else kind)


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
