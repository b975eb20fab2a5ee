"""Worker process of an embedding job, started by `tlkit.embedding.local`: `python -m tlkit.worker`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tlkit import places, resolve
from tlkit.defaults import DEFAULT_TARGET
from tlkit.embedding.job import open_job
from tlkit.embedding.local import facts_of
from tlkit.embedding.shard import embed_shard
from tlkit.errors import ResourceError, TlkitError
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
        _serve(say)
    except (KeyboardInterrupt, BrokenPipeError):  # the parent ends as well, or has
        os._exit(1)
    except TlkitError as error:
        say(error=facts_of(error))
    except Exception as error:
        if not is_refused(error):
            raise
        say(error=facts_of(ResourceError(f"not enough memory or threads: {error}", do=REFUSED)))


def _serve(say: Callable[..., None]) -> None:
    start = json.loads(sys.stdin.readline())
    use_at_most(start["threads"])
    job = open_job(Path(start["job"]), checked=False)
    file, threads = Path(start["model"]), start["threads"]
    opener = resolve.opener(start["device"], allow_cpu=False, trust=True)  # it is open in the parent already
    opened = resolve.open_model(file, "trunk", DEFAULT_TARGET, "fp32", head=None, workers=threads, opener=opener)
    with opened as model:
        opened_places = places.open_places(job.record.places)
        say(ready=True)
        for line in sys.stdin:
            shard = json.loads(line)["shard"]
            report = _Report(say)
            embed_shard(job, shard, model, opened_places, report.add)
            report.flush()
            say(done=shard)


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
