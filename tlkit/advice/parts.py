"""Trainings that are parts of something longer: each is done once, and what was killed finds again what is done."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlkit.evaluation.metrics import Metrics
from tlkit.plugin.contract import Progress
from tlkit.training.config import RunOptions, TrainingConfig
from tlkit.training.result import TrainingResult
from tlkit.training.run import train
from tlkit.training.run_directory import DONE, once


@dataclass(frozen=True, slots=True)
class Trial:
    """One training, measured on the validation images."""

    what: str
    trained: TrainingResult
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {"what": self.what, "accuracy": self.trained.metrics.accuracy, "seconds": self.seconds}


def run(
    source: Path, out: Path, what: str, recipe: TrainingConfig, progress: Progress, how: RunOptions | None = None
) -> Trial:
    """Train to `out` and measure.

    What was done is noted beside `out` and found there by a later run; what was begun is taken up. The same folder must
    not be used for anything else (see `work.workplace`).
    """

    def trial() -> dict[str, Any]:
        shutil.rmtree(out, ignore_errors=True)  # written in the moment before the note would have been
        started = time.perf_counter()
        trained = train(source, out, recipe, progress, replace(how or RunOptions(), resume=True))
        return {"trained": _to_json(trained), "seconds": time.perf_counter() - started}

    known, fresh = once(out.with_name(f"{out.name}{DONE}"), trial)
    trained = _from_json(known["trained"], out)
    return Trial(what, trained if fresh else replace(trained, decoded=0), known["seconds"])


def _to_json(trained: TrainingResult) -> dict[str, Any]:
    facts = {
        name: value for name, value in asdict(trained).items() if name not in ("bundle", "metrics", "right", "advice")
    }
    return {**facts, "metrics": trained.metrics.to_json(), "right": trained.right.tolist()}


def _from_json(facts: dict[str, Any], bundle: Path) -> TrainingResult:
    scores = facts["metrics"] | {
        "interval": tuple(facts["metrics"]["interval"]),
        "confusion": np.array(facts["metrics"]["confusion"], np.int64),
        "reliability": np.array(facts["metrics"]["reliability"], np.float64),
    }
    return TrainingResult(
        **facts | {"bundle": bundle, "metrics": Metrics(**scores), "right": np.array(facts["right"], np.bool_)}
    )
