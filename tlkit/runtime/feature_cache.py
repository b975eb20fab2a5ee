"""Content-addressed cache of features on disk.

One SQLite file for each graph and preprocessing holds one row per image, keyed by the SHA-256 of its bytes, with the
features of every stage. The hash of a file is remembered by its path, size and times.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tlkit.errors import ResourceError
from tlkit.plugin.contract import Preprocessing
from tlkit.util.files import cache_dir

TIMEOUT = 60  # seconds to wait for another process that writes
SCHEMA = """
PRAGMA page_size=16384; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
CREATE TABLE IF NOT EXISTS facts(widths TEXT);
CREATE TABLE IF NOT EXISTS features(sha256 TEXT PRIMARY KEY, row BLOB);
CREATE TABLE IF NOT EXISTS files(path BLOB PRIMARY KEY, identity TEXT, sha256 TEXT);
"""
RECENT_NS = 50_000_000  # a file changed this shortly before it was read could change again without a new time

Identity = tuple[int, int, int, int]  # inode, size, mtime_ns, ctime_ns
Cached = tuple["NDArray[np.float32]", str]  # features, and the SHA-256 of their file


class FeatureCache:
    """The cache of one graph and preprocessing; a context manager that saves on leaving, with or without an error."""

    def __init__(self, graph: Path, preprocessing: Preprocessing) -> None:
        key = hashlib.sha256(json.dumps(asdict(preprocessing)).encode()).hexdigest()[:16]
        self.file = cache_dir("features") / f"{graph.stem}-{key}.sqlite"
        self._opened_ns = time.time_ns()
        with self._errors():
            self._db = _open(self.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()
        self._db.close()

    @property
    def widths(self) -> list[int] | None:
        """Width of each stage's features; None for an empty cache."""
        with self._errors():
            found = self._db.execute("SELECT widths FROM facts").fetchone()
        return json.loads(found[0]) if found else None

    @widths.setter
    def widths(self, widths: list[int]) -> None:
        with self._errors():
            self._db.execute("INSERT INTO facts SELECT ? WHERE NOT EXISTS (SELECT 1 FROM facts)", [json.dumps(widths)])

    def get(self, file: Path, identity: Identity | None, start: int, width: int) -> Cached | None:
        """Return `width` features of a file from `start` on, and its SHA-256; None if it is unknown or was changed."""
        with self._errors():
            found = self._db.execute(
                "SELECT substr(row, ?, ?), sha256 FROM files JOIN features USING (sha256) "
                "WHERE path = ? AND identity = ?",
                [4 * start + 1, 4 * width, _key(file), json.dumps(identity)],
            ).fetchone()
        return (np.frombuffer(found[0], np.float32), found[1]) if found else None

    def add(self, file: Path, identity: Identity | None, sha256: str, features: NDArray[np.float32]) -> None:
        """Store a file's features of all stages."""
        with self._errors():
            self._db.execute("INSERT OR IGNORE INTO features VALUES (?, ?)", [sha256, features.tobytes()])
            if identity and max(identity[2:]) < self._opened_ns - RECENT_NS:
                self._db.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?)", [_key(file), json.dumps(identity), sha256]
                )

    def save(self) -> None:
        """Commit what was added."""
        with self._errors():
            self._db.commit()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ResourceError(
                f"the feature cache can't be used: {error}", file=self.file, do="free some space, or delete this file"
            ) from error


def _open(file: Path) -> sqlite3.Connection:
    """Open a database, made on demand. SQLite itself does not wait where two processes switch a new one to WAL."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        db = sqlite3.connect(file, timeout=TIMEOUT)
        try:
            db.executescript(SCHEMA)
        except sqlite3.OperationalError as error:
            db.close()
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return db


def identify(file: Path) -> Identity | None:
    """Return the inode, size and times of a file; None if it can't be read."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _key(file: Path) -> bytes:
    """Return the absolute path of a file: two folders may each have a photos/."""
    return os.fsencode(os.path.abspath(file))
