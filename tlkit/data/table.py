"""Read a .csv or .parquet table with the columns path, label and optionally split and group."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tlkit.data.labels import LIMIT, Entry, nfc
from tlkit.data.split import SPLITS
from tlkit.errors import DataError, ResourceError
from tlkit.util.text import listed

COLUMNS = ("path", "label", "split", "group")
# What others write for a missing value, case-folded: what pandas reads as one, and errors of spreadsheets.
_MISSING = frozenset({"nan", "nat", "none", "null", "n/a", "na", "#n/a", "#n/a n/a", "#na", "<na>", "-nan"})
_MISSING |= {"1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "undefined"}
_MISSING |= {"#value!", "#ref!", "#name?", "#div/0!", "#null!", "#num!"}


class _Record(NamedTuple):
    """One row of the table as it is written; `split` is None if there is no such column."""

    number: int  # as a spreadsheet counts: the header of a CSV is row 1; Parquet has none and begins at 1
    path: Any
    label: Any
    split: Any
    surplus: bool = False  # there are more fields than columns
    group: Any = None


class _InvalidRow(Exception):
    """The reason why a row is invalid."""


def read(file: Path) -> list[Entry]:
    """Return the entries of a table; paths are absolute or relative to its folder, labels are text or integers.

    Raises `DataError` with all invalid rows, by number and reason, and `ResourceError` if reading Parquet needs a
    package that is not installed.
    """
    records = _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file)
    entries: list[Entry] = []
    problems: list[str] = []
    first: dict[str, _Record] = {}
    for record in records:
        try:
            entry = _entry(record, file.parent)
            _check_repeated(record, entry, first)
            entries.append(entry)
        except _InvalidRow as problem:
            problems.append(f"row {record.number} {problem}")
    if problems:
        raise DataError(f"invalid rows: {listed(problems, LIMIT)}", file=file, do="fix or remove them")
    if not entries:
        raise DataError("a table without rows", file=file)
    return entries


def further_columns(file: Path) -> dict[str, dict[str, str]]:
    """Return the columns of a table beside those of every dataset: values as text by the names of the images.

    `file` is a table that `read` accepts. Values that are neither text nor numbers are left out.
    """
    if file.suffix.lower() == ".parquet":
        from pyarrow import parquet

        rows = parquet.read_table(file).to_pylist()
    else:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines, skipinitialspace=True))
    columns: dict[str, dict[str, str]] = {}
    for row in rows:
        cells = {str(name).strip(): value for name, value in row.items() if name is not None}
        name = _name(file.parent, _text(cells["path"]))
        for column, value in cells.items():
            if column not in COLUMNS and isinstance(value, str | int | float) and str(value).strip():
                columns.setdefault(column, {})[name] = str(value).strip()
    return columns


def _entry(record: _Record, folder: Path) -> Entry:
    problems = ["has more fields than the header (quote fields that contain commas)"] if record.surplus else []
    path, label = _text(record.path), _text(record.label)
    split = None if record.split is None else SPLITS.get(_text(record.split).casefold())
    file = folder / path
    if not path:
        problems.append("has no path")
    elif not os.path.isfile(file):
        other_form = _in_another_form(folder, path)
        if other_form is None:
            problems.append(f"names no file: {path}")
        else:
            file, path = folder / other_form, other_form
    if not label:
        blank = record.label is None or isinstance(record.label, str)
        problems.append(
            "has no label" if blank else f"has a label that is neither text nor an integer: {record.label!r}"
        )
    elif label.casefold() in _MISSING:
        problems.append(f"has the label {label!r}, which stands for a missing value (call the class something else)")
    if record.split is not None and split is None:
        problems.append(f"has split {record.split!r}, not one of {', '.join(SPLITS)}")
    if problems:
        raise _InvalidRow(" and ".join(problems))
    return Entry(file, _name(folder, path), label, split, _text(record.group) or None)


def _in_another_form(folder: Path, path: str) -> str | None:
    """Return the path of a file that differs in its Unicode form or has the separators of Windows alone, or None."""
    spelled = (path, path.replace("\\", "/"))
    forms = (unicodedata.normalize(form, each) for each in spelled for form in ("NFC", "NFD"))
    return next((form for form in forms if os.path.isfile(folder / form)), None)


def _text(value: Any) -> str:
    """Return text without surrounding spaces; empty for other values, such as 1.0, which may mean class "1" or not."""
    return str(value).strip() if isinstance(value, (str, int)) else ""


def _name(folder: Path, path: str) -> str:
    """Return the path relative to the table's folder, with "./" and "x/.." resolved; absolute if it lies outside."""
    base = os.path.abspath(folder)
    full = os.path.normpath(os.path.join(base, path))
    inside = full.startswith(os.path.join(base, ""))
    name = os.path.relpath(full, base) if inside or not os.path.isabs(path) else full
    return nfc(name.replace(os.sep, "/"))


def _check_repeated(record: _Record, entry: Entry, first: dict[str, _Record]) -> None:
    earlier = first.setdefault(entry.name, record)
    if earlier is not record:
        same = _text(earlier.label) == entry.label
        labels = "the same label" if same else f"another label ({entry.label!r}, not {_text(earlier.label)!r})"
        raise _InvalidRow(f"repeats the file of row {earlier.number} with {labels}")


def _csv(file: Path) -> Iterator[_Record]:
    number = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            columns = [column.strip() for column in next(reader, [])]
            _check_columns(file, columns)
            for number, values in enumerate(reader, start=2):
                if values:
                    cells = dict(zip(columns, values, strict=False))
                    split = cells.get("split", "") if "split" in columns else None
                    surplus = len(values) > len(columns)
                    yield _Record(number, cells.get("path"), cells.get("label"), split, surplus, cells.get("group"))
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", file=file) from error
    except (UnicodeDecodeError, csv.Error) as error:
        row = f"row {number + 1}: " if isinstance(error, csv.Error) else ""
        raise DataError(f"not a CSV file in UTF-8 ({row}{error})", file=file) from error


def _parquet(file: Path) -> Iterator[_Record]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ResourceError(f"needs pyarrow ({error})", file=file, do='pip install "tlkit[parquet]"') from error
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        _check_columns(file, names)
        columns = [column for column in COLUMNS if column in names]
        cells = table.read(columns=columns).to_pydict()
    except (ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file that can be read ({error})", file=file) from error
    splits = ["" if split is None else split for split in cells["split"]] if "split" in cells else None
    for index, (path, label) in enumerate(zip(cells["path"], cells["label"], strict=True)):
        group = cells["group"][index] if "group" in cells else None
        yield _Record(index + 1, path, label, None if splits is None else splits[index], group=group)


def _check_columns(file: Path, columns: list[str]) -> None:
    repeated = [column for column in COLUMNS if columns.count(column) > 1]
    if repeated:
        raise DataError(f"has the column {repeated[0]} {columns.count(repeated[0])} times", file=file, do="keep one")
    missing = [column for column in ("path", "label") if column not in columns]
    if missing:
        what = f"has no column {' and no column '.join(missing)}; its columns are {listed(columns, LIMIT) or 'none'}"
        separated = len(columns) == 1 and re.search("[;\t|]", columns[0])
        raise DataError(
            what, file=file, do="separate columns with commas" if separated else "name its columns path and label"
        )
