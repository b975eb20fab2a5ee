"""Output of verbs: results on stdout; progress, skipped images, warnings and the next command on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlkit.cli import result
from tlkit.errors import one_line, printable
from tlkit.plugin.contract import Progress
from tlkit.progress import bars

if TYPE_CHECKING:
    from tlkit.data.scan import FileCounts

SHOWN = 10  # files that are named


def show(facts: Mapping[str, Any], text: object, as_json: bool) -> None:
    """Print a result on stdout: as JSON, or as text for people, without control characters of names and labels."""
    result(json.dumps(facts, indent=2) if as_json else printable(str(text)))


def wrote(path: Path | str | None, *, then: str) -> None:
    """Close a verb by naming what it wrote and the exact next command."""
    click.echo(f"wrote {'nothing' if path is None else one_line(str(path))}\nnext: {then}", err=True)


def done(
    found: Any, as_json: bool, *, then: str, out: Any = None, save: Callable[[Any], object] = lambda _out: None
) -> None:
    """Close a verb: say which files were not read, print the result with the next command, and `save` it to `out`."""
    if hasattr(found, "files"):
        note_files(found)
    show({**found.to_json(), "next": then}, found, as_json)
    if out is not None:
        save(out)
    wrote(out, then=then)


def claim_beside(file: Path | None, check: Callable[[Path], object]) -> None:
    """Check a file to write beside a result, if there is one, before any work; hold its lock until the verb ends."""
    from tlkit.util.locks import claim

    if file is not None:
        check(file)
    click.get_current_context().with_resource(claim(file))


def note_files(found: Any) -> None:
    """Say on stderr which files were not read and why, and the number of all files, unless all were read."""
    for what, reasons in (("skipped", found.skipped), ("rejected", found.rejected)):
        note(what, dict(islice(reasons.items(), SHOWN)))
        if len(reasons) > SHOWN:
            click.echo(f"{what} {len(reasons) - SHOWN:,} more", err=True)
    note_counts(found.files)


def note_counts(files: FileCounts) -> None:
    """Say on stderr the number of all files, unless all were read."""
    if not files.complete:
        click.echo(str(files), err=True)


def note(what: str, reasons: Mapping[str, object] | Iterable[str]) -> None:
    """Say on stderr, one line each, what was not used and why."""
    lines = (f"{name}: {reason}" for name, reason in reasons.items()) if isinstance(reasons, Mapping) else reasons
    for line in lines:
        click.echo(one_line(f"{what} {line}"), err=True)


def progress_bars() -> AbstractContextManager[Progress]:
    """Give progress as bars on a terminal, and what is a line anywhere."""
    return bars(lines=True)
