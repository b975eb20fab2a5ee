"""Sources with one thing wrong each, by the check that has to find it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tests.conformance.broken.registry import Registry
from tlkit.plugin.contract import Reader, Record, Source

BROKEN = Registry()
breaks = BROKEN.breaks


class Shelf(Reader):
    def __init__(self, place):
        self.root = Path(place)

    def read(self, record):
        return (self.root / record.key).read_bytes()


@dataclass(frozen=True)
class Flat(Source):
    """All files below a folder, without any check."""

    name = "flat"

    def accepts(self, place):
        return not place.endswith(".unknown")

    def records(self, place):
        for file in Path(place).rglob("*.png"):
            yield Record(file.relative_to(place).as_posix(), size=file.stat().st_size)

    def open(self, place):
        return Shelf(place)

    def example(self, folder, files):
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return str(folder)


@breaks("accepts-its-places", "it accepts 'nowhere/of-no-kind.unknown'")
class Greedy(Flat):
    def accepts(self, place):
        return True


@breaks("lists-every-image", "it lists 3 records of 4 images")
class Shallow(Flat):
    def records(self, place):
        return (record for record in super().records(place) if "/" in record.key)


@breaks("keys-are-text", "keys that are no relative names: /")
class Absolute(Flat):
    def records(self, place):
        return (replace(record, key=f"{place}/{record.key}") for record in super().records(place))


@breaks("reads-the-bytes", "what it reads is not what was stored")
class Headless(Flat):
    def open(self, place):
        class Late(Shelf):
            def read(self, record):
                return super().read(record)[1:]

        return Late(place)


@breaks("sizes-are-true", "another size than that of the file: ")
class Rounded(Flat):
    def records(self, place):
        return (replace(record, size=4096) for record in super().records(place))


@breaks("refuses-what-changed", "changed, and read as if it were not")
class Trusting(Flat):
    def records(self, place):
        return (replace(record, size=-1) for record in super().records(place))
