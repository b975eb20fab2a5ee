"""Worker process of an embedding job, started by `tlkit.embedding.local`: `python -m tlkit.worker`; or by Ray."""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tlkit import places, resolve
from tlkit.defaults import DEFAULT_TARGET
from tlkit.embedding.job import Job, Place, open_job
from tlkit.embedding.local import facts_of
from tlkit.embedding.manifest import Opened
from tlkit.embedding.shard import embed_shards, versions
from tlkit.errors import ResourceError, TlkitError
from tlkit.runtime.model import Model
from tlkit.util.resources import REFUSED, is_refused, use_at_most

EVERY = 0.2  # seconds between reports


def main() -> None:
    """Run the shards whose numbers come on stdin, until it ends or something fails."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what native code and plugins print is no report

    def say(**facts: Any) -> None:
        out.write(json.dumps(facts) + "\n")
        out.flush()

    try:
        if error := _problem(lambda: _serve(say)):
            say(error=error)
    except (KeyboardInterrupt, BrokenPipeError):  # the parent ends as well, or has
        os._exit(1)


def run_shard(start: Mapping[str, Any], shard: int) -> dict[str, Any]:
    """Run one shard as a task of a cluster; return its commit, or the error that ends the job, as JSON values."""
    done = dict[str, Any]()

    def run() -> None:
        check_versions(start["versions"])
        job, model, opened_places = _open(json.dumps(dict(start)))
        (commit,) = embed_shards(job, [shard], model, opened_places, lambda _images: None)
        done.update(asdict(commit))

    error = _problem(run)
    return done if error is None else {"error": error}


def check_versions(wanted: Mapping[str, str]) -> None:
    """Raise a ResourceError if this process has other versions than those, of what decides on the features."""
    own = versions()
    if differing := [f"{name} {own[name]}, not {wanted[name]}" for name in own if own[name] != wanted[name]]:
        what = f"a worker on {platform.node()} has {', '.join(differing)}"
        raise ResourceError(what, do="install the same versions on all nodes")


def _problem(run: Callable[[], object]) -> dict[str, Any] | None:
    """Return the error that a user can act on, if there is one, as JSON values."""
    try:
        run()
    except TlkitError as error:
        return facts_of(error)
    except Exception as error:
        if not is_refused(error):
            raise
        return facts_of(ResourceError(f"not enough memory or threads: {error}", do=REFUSED))
    return None


def _serve(say: Callable[..., None]) -> None:
    versions()  # imports what it takes while the parent opens its model and lists the images
    if not (start := sys.stdin.readline()):
        return
    job, model, opened_places = _open(start)
    say(ready=True)
    with model:
        for line in sys.stdin:
            shard = json.loads(line)["shard"]
            report = _Report(say)
            embed_shards(job, [shard], model, opened_places, report.add)
            report.flush()
            say(done=shard)


@functools.lru_cache(maxsize=1)
def _open(text: str) -> tuple[Job, Model, Sequence[Opened]]:
    """Return the job, the model and the places of what to open, as JSON; a process of a cluster opens them once."""
    start = json.loads(text)
    use_at_most(start["threads"])
    job = open_job(start["job"], checked=False)
    file, threads = Path(start["model"]), start["threads"]
    opener = resolve.opener(start["device"], allow_cpu=False, trust=True)  # it is open in the parent already
    model = resolve.open_model(file, "trunk", DEFAULT_TARGET, "fp32", head=None, workers=threads, opener=opener)
    return job, model, places.open_places([Place(**each) for each in start["places"]])


class _Report:
    """Numbers of images, reported a few times a second."""

    def __init__(self, say: Callable[..., None]) -> None:
        self.say, self.images, self.last = say, 0, time.monotonic()

    def add(self, images: int) -> None:
        """Count images that were embedded."""
        self.images += images
        if time.monotonic() - self.last > EVERY:
            self.flush()

    def flush(self) -> None:
        """Report those that were not yet."""
        self.say(images=self.images)
        self.images, self.last = 0, time.monotonic()


if __name__ == "__main__":
    main()
