"""The run directory: identity, checkpoints, log and caches of a training that has not finished.

It lies beside the bundle that is to be written, and is removed when that exists. An interrupted run resumes from it if
nothing that decides the outcome differs. A run that consists of several trainings has a directory of the same kind for
each of them inside, and a record of each that is done.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tlkit.errors import TlkitWarning, UsageError
from tlkit.model import in_place
from tlkit.model.bundle import RECORD
from tlkit.util.files import atomic_file, check_new, check_writable, translate_os_errors
from tlkit.util.resources import processor_kind
from tlkit.util.schema import parse_json
from tlkit.util.temporaries import PART, prefix
from tlkit.util.text import listed, quoted

IDENTITY = "identity.json"
MACHINE = "machine"  # in an identity: where it differs, a run is resumed with a warning
DONE = ".done.json"  # suffix of the record of a part that is done
CHECKPOINT = "checkpoint-"
SUFFIXES = (".json", ".jsonl", ".npy")  # of identity, records, log and views
SHOWN = 4  # differences that are named


def folder_of(out: Path) -> Path:
    """Return the run directory of the bundle `out`."""
    return out.absolute().with_name(f".{out.name}.training")


def is_unfinished(out: Path) -> bool:
    """Return True if a training of the bundle `out` was interrupted and can be resumed."""
    return _has_progress(folder_of(out))


def _has_progress(folder: Path) -> bool:
    """Return True if there is a checkpoint, its own or that of a part, or a part that is done."""
    return any(any(folder.rglob(pattern)) for pattern in (f"{CHECKPOINT}*", f"*{DONE}"))


def best_so_far(out: Path) -> str | None:
    """Return in words what bundle an unfinished training has put in the place of its output; None if there is none."""
    content = in_place.found(out, folder_of(out))
    return None if content is None else in_place.described(content)


def check_unfinished(out: Path, *, resume: bool) -> None:
    """Raise a UsageError if a training of `out` was interrupted and is not to be resumed."""
    if not resume and is_unfinished(out):
        do = f"resume it with its options and --resume, or discard it: rm -r {quoted(folder_of(out))}"
        raise UsageError("a training of it was interrupted", file=out, do=do)


def check_output(out: Path, *, resume: bool) -> None:
    """Raise an error if `out` exists, except as the best so far of a training to resume, or can't be written."""
    check_unfinished(out, resume=resume)
    if best_so_far(out) is None:
        check_new(out)
    check_writable(out)


def discard_finished(out: Path) -> None:
    """Remove the run directory of a training that was killed after it had written its bundle."""
    folder = folder_of(out)
    if (out / RECORD).exists() and folder.exists() and not (best_so_far(out) or _strangers(folder)):
        _remove(folder)


@contextmanager
def run_directory(
    out: Path, identity: Mapping[str, Any], *, resume: bool, is_main_process: bool = True
) -> Iterator[Path]:
    """Create or resume the run directory of `out`; remove it on success, or if there is no progress to keep.

    `identity` is everything that decides the outcome; with `resume` it must be that of the interrupted run.
    """
    folder = folder_of(out)
    if is_main_process:
        _enter(folder, json.loads(json.dumps(identity)), resume)
    done = False
    try:
        yield folder
        done = True
    finally:
        if is_main_process and (done or not _has_progress(folder)) and not _strangers(folder):
            _remove(folder)


def once(record: Path, compute: Callable[[], Any]) -> tuple[Any, bool]:
    """Return what a JSON record holds, computed and written if there is none yet; and True if it was computed now.

    A record that does not match its checksum is computed again, with a warning.
    """
    try:
        known = parse_json(record.read_text("utf-8"))
        if known["checksum"] == _checksum(known["value"]):
            return known["value"], False
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError):
        _tell_damaged(record)
    else:
        _tell_damaged(record)
    value = json.loads(json.dumps(compute()))
    with atomic_file(record) as temporary:
        temporary.write_text(json.dumps({"checksum": _checksum(value), "value": value}))
    return value, True


def machine() -> dict[str, Any]:
    """Return what decides on the last bits of a training's sums: the kind of processor and the number of threads."""
    import torch

    return {"processor": processor_kind(), "threads": torch.get_num_threads()}


def _checksum(value: Any) -> int:
    return zlib.crc32(json.dumps(value).encode())


def _tell_damaged(record: Path) -> None:
    warnings.warn(f"{record}: a record was damaged and is computed again", TlkitWarning, stacklevel=3)


def _enter(folder: Path, identity: dict[str, Any], resume: bool) -> None:
    file = folder / IDENTITY
    if resume and file.exists():
        try:
            known = parse_json(file.read_text("utf-8"))
        except ValueError as error:
            do = f"discard the interrupted run: rm -r {quoted(folder)}"
            raise UsageError(f"can't be read: {error}", file=file, do=do) from error
        before, now = (given.pop(MACHINE, None) for given in (known, identity))
        if found := list(differences(before, now)):
            what = f"the interrupted run was on another machine: {listed(found, SHOWN, separator='; ')}"
            warnings.warn(f"{folder}: {what}; the last bits of the result differ", TlkitWarning, stacklevel=2)
        if found := list(differences(known, identity)):
            raise UsageError(
                f"the interrupted run differs: {listed(found, SHOWN, separator='; ')}",
                file=folder,
                do=f"use the options and images of that run, or discard it: rm -r {quoted(folder)}",
            )
        return
    if found := _strangers(folder):
        what = f"it holds files that tlkit did not write, and does not remove: {listed(found)}"
        raise UsageError(what, file=folder, do="move them away")
    _remove(folder)
    with translate_os_errors(folder):
        folder.mkdir(parents=True)
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(identity))


def _remove(folder: Path) -> None:
    """Remove a run directory, under another name first: one that is killed meanwhile is swept as temporary."""
    if folder.exists():
        aside = folder.with_name(f"{prefix(folder)}finished{PART}")
        with translate_os_errors(folder):
            os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _strangers(folder: Path) -> list[str]:
    """Return the files of a run directory that no training writes: not by their names, and not in a bundle."""
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    whole = (folder / IDENTITY).exists()
    bundles = {path.parent for path in files if path.name == RECORD}
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(files)
        if not (whole and (path.suffix in SUFFIXES or path.name.startswith(CHECKPOINT)))
        and bundles.isdisjoint(path.parents)
        and not any(part.endswith(PART) for part in path.relative_to(folder).parts)
    ]


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield what differs, each named by its place: `strategy.epochs was 10, is 20`."""
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
