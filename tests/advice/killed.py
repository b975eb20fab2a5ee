"""Auto on the tiny backbone, as a process of its own that is killed at a moment that is told, or not at all.

`killed.py photos/ out/ BUDGET KEPT step 7`: in the seventh step of learning; `rename 3`: when a third file or folder is
about to take its place in the folder of the training; `never 0`: goes to its end, taking up what there is. With the
budget 0 there are no trials; KEPT says which trunk is to do better, `moved` or `frozen`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.advice.asking import ask
from tlkit.advice import auto, statistics
from tlkit.advice import recommendation as recommend
from tlkit.training.config import RunOptions
from tlkit.training.history import Watch


def counts_as_large() -> None:
    """So few pictures count as many, of which frozen features leave something to be gained."""
    statistics.LARGE, statistics.LARGE_PER_CLASS = 20, 5
    recommend.ROOM, recommend.EPOCHS = -1.0, 3


def kill_at(left: list[int], owner: Any, name: str, counts: Callable[..., bool]) -> None:
    """Have the process killed when so many calls are left, of those that count."""
    call = getattr(owner, name)

    def last(*args: Any, **options: Any) -> Any:
        left[0] -= counts(*args)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)

    setattr(owner, name, last)


if __name__ == "__main__":
    photos, out, budget, kept, when, number = sys.argv[1:]
    left = [int(number)]
    counts_as_large()
    auto.better = lambda _moved, _still, _likeness: kept == "moved"
    if when == "step":
        kill_at(left, Watch, "step", lambda _watch, _images, line: bool(line))
    elif when == "rename":
        for name in ("rename", "replace"):
            kill_at(left, os, name, lambda _source, target: ".training" in str(target))
    how = RunOptions(resume=True, checkpoint_every=0)
    trained, advice = auto.train_auto(Path(photos), Path(out), ask(), how, float(budget) or None)
    sys.stdout.write(f"{trained.digest} {advice.recommendation.strategy} {len(advice.trials)} {left[0]}\n")
