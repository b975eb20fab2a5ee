"""Images in the table `images` of an SQLite database, with the columns key, image and label."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tlkit import DataError, Reader, Record, Source, hookimpl

SUFFIX = ".sqlite"
LISTED = "SELECT key, rowid, length(image), label FROM images"


@dataclass(frozen=True)
class SqliteSource(Source):
    """Reads images from an SQLite database, each by the number of its row."""

    name = "sqlite"
    only_images = True

    def accepts(self, place: str) -> bool:
        """By its name: one source must be left for every place."""
        return place.endswith(SUFFIX)

    def records(self, place: str) -> Iterator[Record]:
        """One record per row, with its label; the images are not read."""
        version = _version(place)
        with _opened(place) as database:
            for key, row, size, label in database.execute(LISTED):
                yield Record(key, str(row), size, version, label)

    def open(self, place: str) -> Reader:
        """Return the reader of one image at a time."""
        return SqliteReader(place)

    def example(self, folder: Path, files: Mapping[str, bytes]) -> str:
        """A database with these images, for the checks."""
        folder.mkdir()
        place = str(folder / f"images{SUFFIX}")
        with closing(sqlite3.connect(place)) as database, database:
            database.execute("CREATE TABLE images (key TEXT, image BLOB, label TEXT)")
            database.executemany("INSERT INTO images (key, image) VALUES (?, ?)", files.items())
        return place


class SqliteReader(Reader):
    """Opens the database for every image, so that any number of threads may read."""

    def __init__(self, place: str) -> None:
        self.place = place

    def read(self, record: Record) -> bytes:
        """The bytes of one image; a database that is another one by now is refused."""
        if _version(self.place) != record.version:
            raise DataError("its database has changed since it was listed")
        with _opened(self.place) as database:
            found = database.execute("SELECT image FROM images WHERE rowid = ?", (record.locator,)).fetchone()
        if found is None:
            raise DataError("its row is gone")
        return bytes(found[0])


@contextmanager
def _opened(place: str) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(f"{Path(place).absolute().as_uri()}?mode=ro", uri=True)) as database:
            yield database
    except sqlite3.Error as error:
        raise DataError(f"it can't be read: {error}", file=place) from error


def _version(place: str) -> str:
    try:
        status = Path(place).stat()
    except OSError as error:
        raise DataError(f"it can't be read: {error.strerror}", file=place) from error
    return f"{status.st_mtime_ns} {status.st_size}"


@hookimpl
def tlkit_sources() -> Iterable[Source]:
    """The components of this plugin."""
    return [SqliteSource()]
