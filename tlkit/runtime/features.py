"""Features of many images through the deployed runtime, row = sample index, kept so that no image is decoded twice.

The cache is content-addressed: one SQLite file for each graph and pixel recipe, one row for each image by the SHA-256
of its bytes, holding the features of every stage. Another head, another cut or another PCA size reads no image again,
and a run that was killed goes on where it was. What bytes a file has is remembered by its path, size and times.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from tlkit.errors import DataError, ResourceError
from tlkit.plugin.contract import Preprocessing
from tlkit.runtime.model import stream
from tlkit.runtime.session import OnnxSession
from tlkit.util.files import cache_dir
from tlkit.util.resources import cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAVE_EVERY = 128  # chunks: what a killed run loses at most
FRESH_NS = 50_000_000  # a file changed this shortly before it was read could change again without a new time

Identity = tuple[int, int, int, int]  # inode, size, mtime_ns, ctime_ns
Known = tuple["NDArray[np.float32]", str]  # values, and the SHA-256 of the file they are of


@dataclass(frozen=True, slots=True)
class Features:
    """`array[i]` `(width,)` belongs to file i where `usable[i]`; the rest were rejected for the reason given.

    Without a cut, a row holds the features of all stages, shallow to deep, of the `widths` given.
    """

    array: NDArray[np.float32]
    usable: NDArray[np.bool_]
    rejected: dict[int, str]
    decoded: int  # images decoded for this; the rest came from the cache
    sha256: tuple[str, ...] = ()  # of each file, hex; empty where it was rejected
    widths: tuple[int, ...] = ()

    def stage(self, index: int) -> NDArray[np.float32]:
        """The features of one stage, where there is no cut: `(N, widths[index])`; -1 is the deepest."""
        index %= len(self.widths)
        start = sum(self.widths[:index])
        return self.array[:, start : start + self.widths[index]]


def extract(
    files: Sequence[Path],
    graph: Path,
    preprocessing: Preprocessing,
    stages: Sequence[str],
    cut: str | None,
    tick: Callable[[int], object],
) -> Features:
    """Features `(N, width)` at `cut`, or of all stages, of each file.

    `graph` gives those of all `stages`, and all are kept, whatever the cut. `tick(n)` is called whenever n more images
    are done.
    """
    session = OnnxSession(graph, workers=cores())
    taps = session.outputs  # one a stage, in their order
    with _Store(graph, preprocessing) as store:
        identities = [_identity(file) for file in files]  # before they are read: a later change gives another
        widths = store.widths or _widths(session, preprocessing)
        store.widths = widths
        start = 0 if cut is None else sum(widths[: stages.index(cut)])
        width = sum(widths) if cut is None else widths[stages.index(cut)]
        array, usable = np.zeros((len(files), width), np.float32), np.zeros(len(files), bool)
        hashes, todo = [""] * len(files), []
        for index, file in enumerate(files):
            known = store.row(file, identities[index], start, width)
            if known is None:
                todo.append(index)
            else:
                (array[index], hashes[index]), usable[index] = known, True
        tick(len(files) - len(todo))

        rejected: dict[int, str] = {}
        place = iter(todo)
        chunks = stream(session, preprocessing, [files[index] for index in todo], taps, hashed=True)
        for number, chunk in enumerate(chunks, start=1):
            rows = iter(np.concatenate([chunk.arrays[name] for name in taps], axis=1) if chunk.kept() else ())
            for row in chunk.rows:
                index = next(place)
                if row.reason is not None:
                    rejected[index] = row.reason
                    continue
                values = next(rows)
                store.add(row.file, identities[index], row.sha256, values)
                array[index], usable[index], hashes[index] = values[start : start + width], True, row.sha256
            if number % SAVE_EVERY == 0:
                store.save()
            tick(len(chunk.rows))
    return Features(array, usable, rejected, len(todo) - len(rejected), tuple(hashes), tuple(widths))


def check_rejected(features: Features, files: Sequence[Path], max_bad: float) -> None:
    """Raise a `DataError` where more than the share `max_bad` of the files could not be used."""
    if len(features.rejected) > max_bad * len(files):
        first, reason = next(iter(features.rejected.items()))
        raise DataError(
            f"{len(features.rejected)} of {len(files)} images can't be used, the first because: {reason}",
            file=files[first],
            do=f"mend or remove them, or allow more than {max_bad:.1%} with --max-bad",
        )


def _widths(session: OnnxSession, preprocessing: Preprocessing) -> list[int]:
    """The width of each stage's features, from running one black image."""
    black = np.zeros((1, preprocessing.size, preprocessing.size, 3), np.uint8)
    return [array.shape[1] for array in session.run(black).values()]


class _Store:
    """The cache on disk for one graph and pixel recipe; a context manager that saves on leaving, error or not."""

    def __init__(self, graph: Path, preprocessing: Preprocessing) -> None:
        recipe = hashlib.sha256(json.dumps(asdict(preprocessing)).encode()).hexdigest()[:16]
        self.file = cache_dir("features") / f"{graph.stem}-{recipe}.sqlite"
        self._opened_ns = time.time_ns()
        with self._explained():
            self._db = sqlite3.connect(self.file, timeout=60)
            self._db.executescript(
                "PRAGMA page_size=16384; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
                "CREATE TABLE IF NOT EXISTS facts(widths TEXT);"
                "CREATE TABLE IF NOT EXISTS features(sha256 TEXT PRIMARY KEY, row BLOB);"
                "CREATE TABLE IF NOT EXISTS files(path BLOB PRIMARY KEY, identity TEXT, sha256 TEXT);"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()
        self._db.close()

    @property
    def widths(self) -> list[int] | None:
        """The width of each stage, once known."""
        with self._explained():
            found = self._db.execute("SELECT widths FROM facts").fetchone()
        return json.loads(found[0]) if found else None

    @widths.setter
    def widths(self, widths: list[int]) -> None:
        with self._explained():
            self._db.execute("INSERT INTO facts SELECT ? WHERE NOT EXISTS (SELECT 1 FROM facts)", [json.dumps(widths)])

    def row(self, file: Path, identity: Identity | None, start: int, width: int) -> Known | None:
        """`width` values from `start` on of a file's row, and the file's SHA-256, if the file is as it was."""
        with self._explained():
            found = self._db.execute(
                "SELECT substr(row, ?, ?), sha256 FROM files JOIN features USING (sha256) "
                "WHERE path = ? AND identity = ?",
                [4 * start + 1, 4 * width, _key(file), json.dumps(identity)],
            ).fetchone()
        return (np.frombuffer(found[0], np.float32), found[1]) if found else None

    def add(self, file: Path, identity: Identity | None, sha256: str, values: NDArray[np.float32]) -> None:
        """Keep a file's features of all stages."""
        with self._explained():
            self._db.execute("INSERT OR IGNORE INTO features VALUES (?, ?)", [sha256, values.tobytes()])
            if identity and max(identity[2:]) < self._opened_ns - FRESH_NS:
                self._db.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?)", [_key(file), json.dumps(identity), sha256]
                )

    def save(self) -> None:
        """Make durable what was added."""
        with self._explained():
            self._db.commit()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ResourceError(
                f"the feature cache can't be used: {error}", file=self.file, do="free some space, or delete this file"
            ) from error


def _key(file: Path) -> bytes:
    """What a file is known by: its path from the root, as two folders may each have a photos/."""
    return os.fsencode(os.path.abspath(file))


def _identity(file: Path) -> Identity | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
