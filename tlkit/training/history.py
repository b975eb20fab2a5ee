"""Training to look at while it runs: progress, a log of the epochs, and TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlkit.errors import ResourceError
from tlkit.plugin.contract import Progress, silent
from tlkit.util.files import translate_os_errors

LOG = "history.jsonl"


class Watch:
    """Hands on what happens: to a progress bar a phase, to a log with a line an epoch, to TensorBoard."""

    def __init__(
        self, progress: Progress = silent, *, phases: int = 1, log: Path | None = None, board: Path | None = None
    ) -> None:
        self.progress, self.phases, self.log = progress, phases, log
        self.board = None if board is None else _writer(board)
        self.tick = silent("", 0)
        self.began, self.seen = time.perf_counter(), 0
        self.lines: list[dict[str, Any]] = []  # of the epochs that were seen, with their times

    def phase(self, number: int, total: int, done: int) -> None:
        """A phase of `total` images begins, of which `done` were learnt from before this run."""
        self.tick = self.progress(f"phase {number} of {self.phases}" if self.phases > 1 else "training", total)
        self.tick(done)
        self.began, self.seen = time.perf_counter(), 0

    def say(self, what: str) -> None:
        """Something to know before it takes its time."""
        self.progress(what, 0)

    def step(self, images: int, line: Mapping[str, float]) -> None:
        """So many images more were learnt from; `line` has loss, accuracy and rate so far in this epoch."""
        self.seen += images
        if line:
            facts = f"loss {line['loss']:.3f}, accuracy {line['accuracy']:.1%}"
            self.tick(images, f"{facts}, {self.speed():.0f} images/s, rate {line['lr']:.1e}")
        else:
            self.tick(images)

    def speed(self) -> float:
        """Images a second since the epoch began."""
        return self.seen / max(time.perf_counter() - self.began, 1e-9)

    def epoch(self, line: Mapping[str, Any]) -> None:
        """An epoch is over."""
        seconds = time.perf_counter() - self.began
        timed = {**line, "seconds": round(seconds, 3), "images_per_second": round(self.speed(), 1)}
        self.lines.append(timed)
        if self.log is not None:
            with translate_os_errors(self.log), self.log.open("a") as stream:
                stream.write(json.dumps(timed) + "\n")
        if self.board is not None:
            for name, value in timed.items():
                if name not in ("phase", "epoch"):
                    self.board.add_scalar(name, value, len(self.lines))
            self.board.flush()
        self.began, self.seen = time.perf_counter(), 0


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        what = "TensorBoard is not installed"
        raise ResourceError(what, file=folder, do='run: pip install "tlkit[tensorboard]"') from error
    with translate_os_errors(folder):
        return SummaryWriter(str(folder))
