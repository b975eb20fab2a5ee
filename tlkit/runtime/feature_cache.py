"""Content-addressed cache of features on disk.

One SQLite file for each graph and everything else that decides the features holds one row per image, keyed by the
SHA-256 of its bytes, with the features of every stage. The hash of a file is remembered by its path, size and times.
Every row carries a checksum of its key and its content: what does not match it is computed again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
import PIL
from numpy.typing import NDArray

from tlkit.errors import ResourceError, TlkitWarning
from tlkit.plugin.contract import Preprocessing
from tlkit.util.files import cache_dir
from tlkit.util.resources import processor_kind

TIMEOUT = 60  # seconds to wait for another process that writes
SCHEMA = """
PRAGMA page_size=16384; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
CREATE TABLE IF NOT EXISTS facts(widths TEXT, checksum INTEGER);
CREATE TABLE IF NOT EXISTS features(sha256 TEXT PRIMARY KEY, row BLOB, checksum INTEGER);
CREATE TABLE IF NOT EXISTS files(path BLOB PRIMARY KEY, identity TEXT, sha256 TEXT, checksum INTEGER);
"""
LOOK_UP = """
SELECT identity, sha256, files.checksum, row, features.checksum FROM files JOIN features USING (sha256) WHERE path = ?
"""
DAMAGED = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,  # a table or column is missing
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_IOERR_SHORT_READ,
}
READ_ONLY = {sqlite3.SQLITE_READONLY}  # also if the header asks for a later version of SQLite
RECENT_NS = 50_000_000  # a file changed this shortly before it was read could change again without a new time

Identity = tuple[int, int, int, int]  # inode, size, mtime_ns, ctime_ns
Cached = tuple["NDArray[np.float32]", str]  # features, and the SHA-256 of their file


def environment() -> dict[str, str]:
    """Return the versions that decide on features besides graph and pixels."""
    return {"onnxruntime": onnxruntime.__version__, "pillow": PIL.__version__}


class FeatureCache:
    """The cache of one graph and preprocessing; a context manager that saves on leaving, with or without an error.

    `setting` is the setting of the session that computes what is missing. A damaged file is removed and started again,
    with one warning.
    """

    def __init__(self, graph: Path, preprocessing: Preprocessing, setting: str = "") -> None:
        decides = json.dumps([asdict(preprocessing), environment(), processor_kind(), setting, SCHEMA])
        key = hashlib.sha256(decides.encode()).hexdigest()[:16]
        self.file = cache_dir("features") / f"{graph.stem}-{key}.sqlite"
        self._opened_ns = time.time_ns()
        self._warned, self._widths = False, list[int]()
        with self._errors():
            self._db = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()
        self._db.close()

    @property
    def widths(self) -> list[int] | None:
        """Width of each stage's features; None for an empty cache."""
        for text, checksum in self._run("SELECT widths, checksum FROM facts"):
            if checksum == _checksum(text):
                return [int(width) for width in json.loads(text)]
            self._tell("its facts")
            self._run("DELETE FROM facts")
        return None

    @widths.setter
    def widths(self, widths: list[int]) -> None:
        self._widths, text = widths, json.dumps(widths)
        self._run("INSERT INTO facts SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM facts)", text, _checksum(text))

    def get(self, file: Path, identity: Identity | None, width: int) -> Cached | None:
        """Return the features `(width,)` of a file and its SHA-256; None if it is unknown, changed or damaged."""
        path, known = _key(file), json.dumps(identity)
        for found, sha256, file_checksum, row, checksum in self._run(LOOK_UP, path):
            if file_checksum != _checksum(path, found, sha256):
                self._tell("a row")
                self._run("DELETE FROM files WHERE path = ?", path)
            elif checksum != _checksum(sha256, row) or len(row) != 4 * width:
                self._tell("a row")
                self._run("DELETE FROM features WHERE sha256 = ?", sha256)
            elif found == known:
                return np.frombuffer(row, np.float32), sha256
        return None

    def add(self, file: Path, identity: Identity | None, sha256: str, features: NDArray[np.float32]) -> None:
        """Store a file's features of all stages."""
        row = features.tobytes()
        self._run("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", sha256, row, _checksum(sha256, row))
        if identity and max(identity[2:]) < self._opened_ns - RECENT_NS:
            path, known = _key(file), json.dumps(identity)
            checksum = _checksum(path, known, sha256)
            self._run("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", path, known, sha256, checksum)

    def save(self) -> None:
        """Commit what was added."""
        with self._errors():
            try:
                with _readable():
                    self._db.commit()
            except sqlite3.DatabaseError as error:
                self._begin_again(error)

    def _run(self, command: str, *values: Any) -> list[Any]:
        """Return the rows that a command finds; none where the file is damaged, which is started again."""
        with self._errors():
            try:
                with _readable():
                    return self._db.execute(command, values).fetchall()
            except sqlite3.DatabaseError as error:
                self._begin_again(error)
                return []

    def _open(self) -> sqlite3.Connection:
        try:
            return _open(self.file)
        except sqlite3.DatabaseError as error:
            self._check_damaged(error)
            self._tell("all of it")
            _remove(self.file)
            return _open(self.file)

    def _begin_again(self, error: sqlite3.DatabaseError) -> None:
        """Remove a damaged file and open a new one; raises other errors again."""
        self._check_damaged(error)
        self._tell("all of it")
        with suppress(sqlite3.Error):
            self._db.close()
        _remove(self.file)
        self._db = self._open()
        if self._widths:
            self.widths = self._widths

    def _check_damaged(self, error: sqlite3.DatabaseError) -> None:
        """Raise an error again unless it says that the content of the file makes no sense."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        writable = os.access(self.file, os.W_OK) and os.access(self.file.parent, os.W_OK)
        if code not in DAMAGED and code & 0xFF not in DAMAGED and not (code in READ_ONLY and writable):
            raise error

    def _tell(self, what: str) -> None:
        """Warn once that something was damaged."""
        if not self._warned:
            text = f"{self.file}: {what} of the feature cache was damaged and is computed again"
            warnings.warn(text, TlkitWarning, stacklevel=2)
        self._warned = True

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ResourceError(
                f"the feature cache can't be used: {error}", file=self.file, do="free some space, or delete this file"
            ) from error


def _open(file: Path) -> sqlite3.Connection:
    """Open a database, made on demand. SQLite itself does not wait where two processes switch a new one to WAL."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        db = sqlite3.connect(file, timeout=TIMEOUT)
        db.text_factory = lambda text: text.decode("utf-8", "replace")  # what is damaged fails its checksum
        try:
            with _readable():
                db.executescript(SCHEMA)
        except sqlite3.Error as error:
            db.close()
            busy = isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return db


@contextmanager
def _readable() -> Iterator[None]:
    """Raise an error of SQLite that Python can't decode, because it quotes what is damaged, as one."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError(str(error)) from error


def _remove(file: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def _checksum(*content: bytes | str) -> float:
    """Return the CRC-32 of a key and what belongs to it; NaN, which equals nothing, for what is not of these types."""
    checksum = 0
    for part in content:
        if not isinstance(part, bytes | str):
            return math.nan
        data = part.encode("utf-8", "replace") if isinstance(part, str) else part
        checksum = zlib.crc32(data, zlib.crc32(b"%d:" % len(data), checksum))
    return checksum


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
