"""Checks of a source, on a place that it writes itself with `example`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from tlkit.conformance.pictures import pictures
from tlkit.conformance.subject import Skipped, Subject, expect, expect_none, prepared
from tlkit.errors import DataError
from tlkit.plugin.contract import Reader, Record, Source
from tlkit.util.files import temporary_dir

NAMES = ("b/0001.png", "a/0002.png", "a/ä 3.png", "0004.png")
NOWHERE = "nowhere/of-no-kind.unknown"


def _contents(first: int = 0) -> dict[str, bytes]:
    """Return four small image files by their keys."""
    made = {}
    for number, name in enumerate(NAMES, first):
        buffer = BytesIO()
        pictures()[number].resize((16, 12)).save(buffer, "PNG")
        made[name] = buffer.getvalue()
    return made


class SourceSubject(Subject[Source]):
    """Source under test."""

    @contextmanager
    def place(self, files: dict[str, bytes] | None = None) -> Iterator[tuple[Path, str]]:
        """Yield a folder and the place with image files that the source wrote into it."""
        with temporary_dir() as folder:
            place = self.component.example(folder / "example", _contents() if files is None else files)
            if place is None:
                raise Skipped("it writes no example")
            yield folder, place

    @prepared("lists-every-image")
    def records(self) -> list[Record]:
        """Records of an example, sorted."""
        with self.place() as (_, place):
            return self.list(place)

    def list(self, place: str) -> list[Record]:
        """Return the records of a place, sorted by key."""
        return sorted(self.component.records(place), key=lambda record: record.key)


def accepts_its_places(subject: SourceSubject) -> None:
    """It accepts the place that it writes, and not one whose name ends like nothing it reads."""
    with subject.place() as (_, place):
        expect(subject.component.accepts(place), f"it does not accept {Path(place).name}", do="tell it by its name")
    do = "accept only what it can read: one source must be left for every place"
    expect(not subject.component.accepts(NOWHERE), f"it accepts {NOWHERE!r}", do=do)


def lists_every_image(subject: SourceSubject) -> None:
    """It lists a record for each image of its example, and their keys are different."""
    keys = [record.key for record in subject.records]
    do = "yield one record per image from `records`"
    expect(len(keys) == len(NAMES), f"it lists {len(keys)} records of {len(NAMES)} images", do=do)
    expect(len(set(keys)) == len(keys), "two records have the same key", do="make the key of each different")


def keys_are_text(subject: SourceSubject) -> None:
    """Keys are valid UTF-8, neither empty nor absolute, and tell nothing of where the place lies."""
    bad = [record.key for record in subject.records if not _is_text(record.key) or record.key.startswith(("/", "."))]
    expect_none(
        bad, "keys that are no relative names", do="use names relative to the place, escaped where they need it"
    )
    with subject.place() as (_, place):
        same = [record.key for record in subject.list(place)] == [record.key for record in subject.records]
    expect(same, "the same images elsewhere have other keys", do="leave the place out of the key")


def reads_the_bytes(subject: SourceSubject) -> None:
    """Its reader returns the bytes of each image file as they were stored, also to several threads at once."""
    files = _contents()
    with subject.place(files) as (_, place), subject.component.open(place) as reader:
        records = subject.list(place) * 8
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(reader.read, records))
    expect(sorted(read) == sorted([*files.values()] * 8), "what it reads is not what was stored", do="return the file")


def sizes_are_true(subject: SourceSubject) -> None:
    """The size of a record, where it has one, is the number of bytes that are read."""
    with subject.place() as (_, place), subject.component.open(place) as reader:
        bad = [each.key for each in subject.list(place) if each.size not in (-1, len(reader.read(each)))]
    expect_none(bad, "another size than that of the file", do="leave the size out if the listing does not know it")


def refuses_what_changed(subject: SourceSubject) -> None:
    """A record whose image was replaced since it was listed is refused with DataError, or has another size."""
    with subject.place() as (folder, place):
        listed = subject.list(place)
        shutil.rmtree(folder / "example", ignore_errors=True)
        (folder / "example").unlink(missing_ok=True)
        again = subject.component.example(folder / "example", _contents(4))
        with subject.component.open(again or place) as reader:
            passed = [each.key for each in listed if _passes(reader, each)]
    expect_none(passed, "changed, and read as if it were not", do="compare the record's `version`, and raise DataError")


def _passes(reader: Reader, record: Record) -> bool:
    try:
        return len(reader.read(record)) == record.size or record.size == -1
    except (DataError, OSError):
        return False


def _is_text(key: str) -> bool:
    try:
        return bool(key.encode())
    except UnicodeEncodeError:
        return False


SUBJECT = SourceSubject
