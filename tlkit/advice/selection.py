"""From evidence to a cut and a head: what is ahead by more than chance, and otherwise what is simpler."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tlkit.advice.analysis import Sight, StageEvidence, draw
from tlkit.errors import TlkitError
from tlkit.plugin.contract import Head
from tlkit.util.statistics import PairedDifference, paired_difference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels = NDArray[np.int64]

MOST_SOLVED = 300  # images that heads are compared on: more would take longer than looking at them
PREFERRED = "logistic"  # where no other is ahead: the smallest to deploy, with the best probabilities


@dataclass(frozen=True, slots=True)
class HeadEvidence:
    """A head cross-validated on the features of a stage, by itself: what it reports after it is solved."""

    stage: str
    head: str
    accuracy: float
    log_loss: float
    images: int
    seconds: float


def lead(one: StageEvidence, other: StageEvidence) -> PairedDifference:
    """How far the probe of `one` is ahead."""
    return paired_difference(one.probe.right, other.probe.right)


def best_stage(stages: Sequence[StageEvidence]) -> StageEvidence:
    """The stage to cut at: the one whose probe is right most often, and surest where it is; of equals the deepest.

    Accuracy alone is a coarse measure on few images, and where a probe is right by the skin of its teeth another head
    is not. Taking half of the log-loss off, in 30 draws of 100 and 500 images of three sets, the cut was on average 1.2
    points behind the best of all cuts and heads on held-out images; by accuracy alone 1.9, the deepest unless another
    was ahead by more than the error 1.7, the deepest always 2.3.
    """
    return max(reversed(stages), key=lambda stage: stage.probe.accuracy - (stage.probe.log_loss or 0.0) / 2)


def compare_heads(
    sight: Sight, stage: StageEvidence, heads: Sequence[Head], labels: Labels, classes: int, seed: int
) -> list[HeadEvidence]:
    """Every head that can be solved and judges itself by cross-validation, on the features of one stage."""
    rows = draw(labels, sight.features.usable, MOST_SOLVED, seed)
    features = np.ascontiguousarray(sight.features.stage(sight.trunk.names.index(stage.name))[rows])
    found = []
    for head in heads:
        started = time.perf_counter()
        try:
            report = getattr(head.solve(features, labels[rows], classes, seed), "report", {})
        except TlkitError:
            continue
        if report.get("cv_accuracy") is not None:
            accuracy, log_loss = float(report["cv_accuracy"]), float(report["cv_log_loss"])
            seconds = time.perf_counter() - started
            found.append(HeadEvidence(stage.name, head.name, accuracy, log_loss, len(rows), seconds))
    return found


def best_head(found: Sequence[HeadEvidence], stage: str) -> HeadEvidence | None:
    """The head to take at a stage: the preferred one, unless another is ahead of it by more than the error."""
    here = [each for each in found if each.stage == stage]
    if not here:
        return None
    best = max(here, key=lambda each: (each.accuracy, -each.log_loss))
    plain = next((each for each in here if each.head == PREFERRED), best)
    share = best.accuracy
    error = np.sqrt(max(share * (1 - share), 1e-4) / best.images) / 2  # they err on the same images: half as far apart
    return best if best.accuracy - plain.accuracy > error else plain
