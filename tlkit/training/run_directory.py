"""The folder of a training that goes on: what it was begun with, its checkpoints, its log and what is kept for it.

It lies beside the bundle that is to be written, and goes when that is there. A training that was killed is taken up
from it, if nothing that decides the outcome is another than it was. One that consists of several trainings has a
folder of the same kind for each of them inside, and a note of each that is done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tlkit.errors import UsageError
from tlkit.util.files import atomic_file, translate_os_errors
from tlkit.util.text import quoted

FACTS = "begun-with.json"
DONE = ".done.json"  # how the note of a part that is done ends
SHOWN = 4  # differences that are named


def folder_of(out: Path) -> Path:
    """Where the training of the bundle `out` is kept while it goes on."""
    return out.absolute().with_name(f".{out.name}.training")


def is_unfinished(out: Path) -> bool:
    """Whether a training of the bundle `out` was left off, with something to go on from."""
    return _is_worth_keeping(folder_of(out))


def _is_worth_keeping(folder: Path) -> bool:
    """Whether it has a checkpoint, its own or that of a part, or a part that is done."""
    return any(any(folder.rglob(pattern)) for pattern in ("checkpoint-*", f"*{DONE}"))


def check_unfinished(out: Path, *, resume: bool) -> None:
    """Refuse to begin where another training was left off."""
    if not resume and is_unfinished(out):
        do = f"go on with --resume, or give it up: rm -r {quoted(folder_of(out))}"
        raise UsageError("a training of it was left off", file=out, do=do)


@contextmanager
def run_directory(out: Path, facts: Mapping[str, Any], *, resume: bool, is_main_process: bool) -> Iterator[Path]:
    """The folder of the training of `out`, made or taken up; removed when all is done, or if nothing is worth keeping.

    `facts` are those that decide the outcome; with `resume` they must be those that it was begun with.
    """
    folder = folder_of(out)
    if is_main_process:
        _enter(folder, json.loads(json.dumps(facts)), resume)
    done = False
    try:
        yield folder
        done = True
    finally:
        if is_main_process and (done or not _is_worth_keeping(folder)):
            shutil.rmtree(folder, ignore_errors=True)


def once(note: Path, find_out: Callable[[], Any]) -> tuple[Any, bool]:
    """What a note says, as JSON; where there is none, what is found out now, which is noted. And whether it was now."""
    try:
        return json.loads(note.read_text()), False
    except (FileNotFoundError, ValueError):
        found = find_out()
    with atomic_file(note) as temporary:
        temporary.write_text(json.dumps(found))
    return found, True


def _enter(folder: Path, facts: dict[str, Any], resume: bool) -> None:
    file = folder / FACTS
    if resume and file.exists():
        try:
            known = json.loads(file.read_text())
        except ValueError as error:
            raise UsageError(
                f"can't be read: {error}", file=file, do=f"rm -r {quoted(folder)}, and begin anew"
            ) from error
        if found := list(differences(known, facts)):
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise UsageError(
                f"it was begun with something else: {'; '.join(found[:SHOWN])}{more}",
                file=folder,
                do=f"give what it was begun with, or give it up: rm -r {quoted(folder)}",
            )
        return
    shutil.rmtree(folder, ignore_errors=True)
    with translate_os_errors(folder):
        folder.mkdir(parents=True)
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(facts))


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What is another now, each named by its place: `strategy.epochs was 10, is 20`."""
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for key in (*before, *(key for key in now if key not in before)):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (one, other) in enumerate(zip(before, now, strict=True), start=1):
            yield from differences(one, other, f"{name} {number}")
    else:
        yield f"{name} was {_shown(before)}, is {_shown(now)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} of them"
    return "not there" if value is None else value if isinstance(value, str) else json.dumps(value)
