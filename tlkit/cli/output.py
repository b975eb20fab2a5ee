"""Output of verbs: results on stdout; progress, skipped images, warnings and the next command on stderr."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from tlkit.cli import result
from tlkit.errors import one_line, printable
from tlkit.plugin.contract import Progress, Tick, silent

if TYPE_CHECKING:
    from tlkit.data.scan import FileCounts

SHOWN = 10  # files that are named
BAR, TIMES = 20, 24  # characters of a progress bar, and of the remaining time with the brackets around both


def show(facts: Mapping[str, Any], text: object, as_json: bool) -> None:
    """Print a result on stdout: as JSON, or as text for people, without control characters of names and labels."""
    result(json.dumps(facts, indent=2) if as_json else printable(str(text)))


def wrote(path: Path | None, *, then: str) -> None:
    """Close a verb by naming what it wrote and the exact next command."""
    click.echo(f"wrote {'nothing' if path is None else one_line(str(path))}\nnext: {then}", err=True)


def note_files(result: HasFiles) -> None:
    """Say on stderr which files were not read and why, and the number of all files, unless all were read."""
    for what, reasons in (("skipped", result.skipped), ("rejected", result.rejected)):
        note(what, dict(islice(reasons.items(), SHOWN)))
        if len(reasons) > SHOWN:
            click.echo(f"{what} {len(reasons) - SHOWN:,} more", err=True)
    if not result.files.complete:
        click.echo(str(result.files), err=True)


def note(what: str, reasons: Mapping[str, str] | Iterable[str]) -> None:
    """Say on stderr, one line each, what was not used and why."""
    lines = (f"{name}: {reason}" for name, reason in reasons.items()) if isinstance(reasons, Mapping) else reasons
    for line in lines:
        click.echo(one_line(f"{what} {line}"), err=True)


class HasFiles(Protocol):
    """A result that knows which files of its source were not read."""

    @property
    def skipped(self) -> Mapping[str, str]: ...
    @property
    def rejected(self) -> Mapping[str, str]: ...
    @property
    def files(self) -> FileCounts: ...


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Give progress as bars on stderr, shown only on a terminal: `progress(what, total)` gives `tick(n, said)`.

    A new bar takes over from the one before, which stays on its line as far as it came; one of nothing is a line.
    """
    with ExitStack() as shown:

        def bar(what: str, total: int) -> Tick:
            shown.close()
            if not total:
                click.echo(one_line(what), err=True)
            if not total or not sys.stderr.isatty():
                return silent(what, total)
            room = max(0, shutil.get_terminal_size().columns - len(what) - 2 * len(str(total)) - BAR - TIMES)
            made: Any = click.progressbar(
                length=total,
                label=what,
                file=sys.stderr,
                show_pos=True,
                width=BAR,
                item_show_func=lambda said: (said or "")[:room],  # one longer than a line would be drawn twice
            )
            opened = shown.enter_context(made)
            return lambda more, said="": opened.update(more, said)

        yield bar
