"""A bundle that is used while a training goes on: each better one takes its place in one step.

Those that are put there are noted in the folder of the training first. So a resumed training knows its own bundle from
another of the same name, which it does not replace, and from those that it has found to be worse.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tlkit.errors import ResourceError, TlkitError, UsageError
from tlkit.model.bundle import RECORD, read_record, with_report
from tlkit.util import files
from tlkit.util.locks import BUSY, claim
from tlkit.util.schema import parse_json, read_as

NOTES = "in-place.json"  # (name, digest) of each bundle that was put in place, in the folder of the training
CURVES = "curves.png"  # beside the files of a bundle, of whose identity it is no part
LOCK = ".lock"
WAIT = 0.2  # seconds between two looks for the end of another command that writes into the bundle


def put(trained: Path, out: Path, report: Mapping[str, Any], folder: Path) -> str | None:
    """Put a copy of the bundle `trained` in place of `out`, with this report of its strategy; return its digest.

    None if a bundle of another name that came after it is in place already. Whatever else is in `out`, such as exports,
    stays there. Raises a UsageError if somebody else's files are there.
    """
    content = with_report(read_record(trained), report)
    digest: str = content["digest"]
    there, notes = found(out, folder), _notes(folder)
    if there is not None:
        if there["digest"] == digest:
            return digest
        names = [name for name, _ in notes]
        now = next(name for name, noted in notes if noted == there["digest"])
        if trained.name in names and names.index(trained.name) < names.index(now):
            return None
    with files.atomic_file(folder / NOTES) as temporary:
        temporary.write_text(json.dumps([*notes, (trained.name, digest)]))
    with (
        _alone(out),
        files.atomic_dir(out, replace=lambda path: _check(path, folder)) as temporary,
        files.translate_os_errors(out),
    ):
        for each in _others(out, there):
            copy = shutil.copytree if each.is_dir() else shutil.copy2
            copy(each, temporary / each.name)
        shutil.copytree(trained, temporary, dirs_exist_ok=True)
        (temporary / RECORD).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return digest


def found(out: Path, folder: Path) -> dict[str, Any] | None:
    """Return the record of the bundle `out`, if it was put there by the training in `folder`."""
    try:
        content = read_record(out)
    except TlkitError:
        return None
    return content if content["digest"] in [digest for _, digest in _notes(folder)] else None


def described(content: Mapping[str, Any]) -> str:
    """Return what a bundle with this record is, and how good, on one line."""
    names = f"{content['strategy']['name']} up to {content['cut']}, {content['head']['name']} head"
    return f"{names}, validation accuracy {content['metrics']['val']['accuracy']:.1%}"


def _notes(folder: Path) -> tuple[tuple[str, str], ...]:
    try:
        notes: tuple[tuple[str, str], ...] = read_as(
            tuple[tuple[str, str], ...], parse_json((folder / NOTES).read_text("utf-8")), NOTES
        )
    except (OSError, ValueError):
        return ()
    return notes


def _check(out: Path, folder: Path) -> None:
    """Raise a UsageError for an output that exists and was not put there."""
    try:
        files.check_new(out)
    except UsageError:
        if found(out, folder) is None:
            raise


def _others(out: Path, there: Mapping[str, Any] | None) -> Iterator[Path]:
    """Yield what is in the bundle in place besides its own files."""
    if there is not None:
        own = {RECORD, CURVES, LOCK, *(name.partition("/")[0] for name in there["files"])}
        yield from (each for each in out.iterdir() if each.name not in own)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the lock of exports inside a bundle, if it exists, once no other command does."""
    with ExitStack() as held:
        while out.is_dir():
            try:
                held.enter_context(claim(out, inside=True))
                break
            except ResourceError as error:
                if BUSY not in error.what:
                    raise
                time.sleep(WAIT)
        yield
