"""First part of the contract: the base class of all components, their options, and sources of images."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from tlkit.plugin.blame import guard


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    local: bool = False,
) -> Any:
    """Return a dataclass field that declares one option of a component: default, help text and allowed values.

    Its annotation is `bool`, `int`, `float`, `str`, `Path`, `tuple[str, ...]`, `Literal`, or a union with None.
    `local` options, such as the path of a weights file, hold on this machine alone: a bundle stores none of them and
    is opened with their defaults, so they must not change the structure of the stages.
    """
    limits = {"choices": choices, "minimum": minimum, "maximum": maximum, "local": local}
    return dataclasses.field(default=default, metadata={"help": help, **limits})


_PLAIN = {"bool": bool, "int": int, "float": int | float, "str": str, "str | None": str | None}


def mistyped(part: Any) -> dict[str, str]:
    """Return the plain fields of a dataclass of the contract that have a value of another type, each with that type."""
    values = [(each.name, getattr(part, each.name), str(each.type)) for each in dataclasses.fields(part)]
    return {
        name: wanted
        for name, value, wanted in values
        if (kind := _PLAIN.get(wanted)) and not (isinstance(value, kind) and isinstance(value, bool) <= (kind is bool))
    }


class Tick(Protocol):
    """Callable that reports `more` completed units and, optionally, a short status text."""

    def __call__(self, more: int, said: str = "", /) -> object: ...


Progress = Callable[[str, int], Tick]  # (description, total units) -> tick


def silent(_what: str, _total: int) -> Tick:
    """Progress that is not shown."""
    return lambda _more, _said="": None


class Component(ABC):
    """Base class of every component. Its name is lower case, words joined by `-`, `_`, `.` or `/`."""

    name: str  # `--head NAME`; a class attribute, or a field of a family of components
    kind: ClassVar[str]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        guard(cls)

    def migrate(self, options: Mapping[str, Any], version: str) -> Mapping[str, Any]:
        """Return the options of a bundle that another `version` of the plugin's distribution wrote, as named today.

        `options` are JSON values by name. Override it where an option was renamed or given another meaning.
        """
        return options


def option_fields(component: Component) -> tuple[dataclasses.Field[Any], ...]:
    """Return the dataclass fields that were declared with `option`."""
    if not dataclasses.is_dataclass(component):
        return ()
    return tuple(field for field in dataclasses.fields(component) if "help" in field.metadata)


@dataclass(frozen=True, slots=True)
class Record:
    """One file of a source, listed without reading it."""

    key: str  # unique in the source and the same wherever it lies, such as the path relative to a folder
    locator: str = ""  # what its reader needs beside the key to find the bytes, such as an offset
    size: int = -1  # bytes; -1: not known
    version: str = ""  # changes with the content: modification time or entity tag; empty: not known
    label: str | None = None  # class of the image, where the source states it
    split: str | None = None  # "train", "val" or "test", where the source states it
    problem: str | None = None  # reason why it can't be read, where the listing tells


_OPTIONAL = str | None


def is_record(value: object) -> bool:
    """Return whether a value is a record with fields of their types; there may be millions."""
    return (
        isinstance(value, Record)
        and isinstance(value.key, str)
        and isinstance(value.locator, str)
        and isinstance(value.size, int)
        and -1 <= value.size < 2**63
        and isinstance(value.version, str)
        and isinstance(value.label, _OPTIONAL)
        and isinstance(value.split, _OPTIONAL)
        and isinstance(value.problem, _OPTIONAL)
    )


class Reader(ABC):
    """Opened place of a source. Any number of threads call `read` at once."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        guard(cls)

    @abstractmethod
    def read(self, record: Record) -> bytes:
        """Return the bytes of the image file of a record.

        Raises DataError, with the reason, for one that is gone, can't be read, or has another `version` by now. OSError
        is taken for a place that can't be reached, and ends the work.
        """

    def close(self) -> None:  # noqa: B027 - most readers hold nothing that has to be released
        """Release what the reader holds; it can't read afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Source(Component):
    """Way to store images: a folder, an archive, a column of a table."""

    kind = "source"
    in_place: ClassVar[bool] = False  # True: its images are files that training reads where they lie
    only_images: ClassVar[bool] = False  # False: records are images if their keys end like the name of an image file

    @abstractmethod
    def accepts(self, place: str) -> bool:
        """Return whether this source reads `place`, a path or an address, by its name and nothing more if it can."""

    @abstractmethod
    def records(self, place: str) -> Iterator[Record]:
        """Yield the records of a place one by one, in any order; there may be more than fit in memory.

        One that is no image, such as a text, may be among them: it is counted and skipped. Raises DataError for a place
        that can't be read.
        """

    @abstractmethod
    def open(self, place: str) -> Reader:
        """Return the reader of a place."""

    def example(self, folder: Path, files: Mapping[str, bytes]) -> str | None:
        """Write a place with these image files, by key, into a new folder and return it: checks read it.

        None: the checks that need a place are skipped.
        """
        return None
