"""Text for people: lists, counts, sizes, durations, names and paths on one line."""

from __future__ import annotations

import difflib
import os
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from tlkit.errors import one_line


def listed(items: Iterable[object], limit: int = 3, *, separator: str = ", ") -> str:
    """Return the first `limit` items, separated, and the number of further ones: "a, b and 4 more"."""
    texts = [str(item) for item in items]
    more = len(texts) - limit
    return separator.join(texts[:limit]) + (f" and {more} more" if more > 0 else "")


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun: "1 layer", "3 layers", "2,000 classes"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def span(bounds: tuple[float, float], digits: int = 1) -> str:
    """Return an interval of shares: "81.2% to 90.1%"."""
    return " to ".join(f"{each:.{digits}%}" for each in bounds)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to a misspelled one; None if none is similar."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name nearest to `name`; empty if none is similar."""
    match = nearest(name, known)
    return "" if match is None else f" (did you mean {match!r}?)"


def quoted(path: Path | str) -> str:
    """Return a path as it is typed in a shell, on one line and not mistaken for an option."""
    text = f"./{path}" if str(path).startswith("-") else str(path)
    if one_line(text) == text:
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{one_line(escaped)}'"  # the shell's spelling of a line break inside a word


def utf8(path: str) -> str:
    """Return a name as text: bytes that are not UTF-8 are escaped, as in caf\\xe9.jpg."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def format_bytes(size: float) -> str:
    """Return a size in decimal units: "1.5 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_seconds(seconds: float) -> str:
    """Return a duration: "0.4 s", "12 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = (), *, left: int = 1) -> list[str]:
    """Return rows as lines with aligned columns: the first `left` columns to the left, the others to the right."""
    cells = [[one_line(str(cell)) for cell in row] for row in ([header] if header else []) + [*rows]]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(_padded, row, widths, (n < left for n in range(len(row))))).rstrip() for row in cells]


def _padded(cell: str, width: int, to_left: bool) -> str:
    space = " " * (width - _width(cell))
    return cell + space if to_left else space + cell


def _width(text: str) -> int:
    """Return the columns that a text takes on a terminal: two for a wide East Asian character, none for an accent."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)
