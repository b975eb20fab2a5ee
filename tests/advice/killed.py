"""Auto on the tiny backbone, as a process of its own that is killed at a given moment, or not at all.

`killed.py photos/ out/ BUDGET KEPT step 7`: in the seventh training step; `rename 3`: when a third file or folder is
about to be renamed into the run directory; `never 0`: runs to its end, resuming what there is. With the budget 0 there
are no trials of every strategy; KEPT says which trunk is to be better, `fine-tuned` or `frozen`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.advice.asking import ask, comparison, eager
from tlkit.advice import auto, run, trials
from tlkit.training.config import RunOptions
from tlkit.training.history import Monitor


def kill_at(left: list[int], owner: Any, name: str, counts: Callable[..., bool]) -> None:
    """Kill the process when no calls are left, of those that count."""
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
    trials.compared = lambda *_, **__: comparison(better=kept == "fine-tuned")
    if when == "step":
        kill_at(left, Monitor, "step", lambda _monitor, _images, line: bool(line))
    elif when == "rename":
        for name in ("rename", "replace"):
            kill_at(left, os, name, lambda _source, target: ".training" in str(target))
    run.SOON = 0  # so that a first bundle comes before heads are compared
    how = RunOptions(resume=True, checkpoint_seconds=0)
    trained, advice = auto.train_auto(Path(photos), Path(out), ask(policy=eager(3)), how, float(budget) or None)
    sys.stdout.write(f"{trained.digest} {advice.recommendation.strategy} {len(advice.trials)} {left[0]}\n")
