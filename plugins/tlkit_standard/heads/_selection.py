"""Model selection: every candidate is judged on rows it was not fitted to, and the winner's temperature with it."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tlkit_standard.heads import _temperature

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDS = 5
PATIENCE = 2  # candidates in a row that must be worse before the rest of the path is given up

# Rows beyond this many change the choice less than they cost: the best C moves by less than a step of the grid.
MOST_ROWS = 5000

# A candidate to the decision values `(n, classes)` of the fold's validation rows, float64. Called once for each
# candidate, in order, so that it may start from where the last one ended.
Scorer = Callable[[float], "NDArray[np.float64]"]
# Training rows, their labels, validation rows -> Scorer. Whatever is fitted, is fitted to the training rows.
OpenFold = Callable[["NDArray[np.float64]", "NDArray[np.int64]", "NDArray[np.float64]"], Scorer]


@dataclass(frozen=True)
class Selection:
    """The candidate chosen, and what its out-of-fold scores say. Without cross-validation: folds 0, no figures."""

    choice: float
    temperature: float = 1.0
    folds: int = 0
    rows: int = 0
    accuracy: float | None = None
    log_loss: float | None = None


def select(
    candidates: Sequence[float],
    open_fold: OpenFold,
    rows: NDArray[np.float64],
    labels: NDArray[np.int64],
    seed: int,
) -> Selection | None:
    """The candidate of the lowest out-of-fold log-loss at its own best temperature; None where folds can't be made.

    `candidates` are ordered from the strongest regularisation to the weakest; a later one has to be better, not
    equal, and the path ends once `PATIENCE` of them were worse than the best.

    A class of one row can't be both learnt and judged: it takes no part. A class of fewer rows than folds does:
    stratified folds deal out its rows one each, so every training part keeps some.
    """
    chosen = _subsample(labels, seed)
    rows, labels = rows[chosen], np.unique(labels[chosen], return_inverse=True)[1]
    folds = min(FOLDS, int(np.bincount(labels).max(initial=0)))
    if len(chosen) == 0 or labels.max() < 1 or folds < 2:
        return None
    parts = _split(labels, folds, seed)
    best: Selection | None = None
    worse = 0
    with ThreadPoolExecutor(min(folds, _cores())) as threads:
        scorers = list(threads.map(lambda part: open_fold(rows[part[0]], labels[part[0]], rows[part[1]]), parts))
        for candidate in candidates:
            results = list(threads.map(lambda scorer: scorer(candidate), scorers))  # noqa: B023
            scores = np.empty((len(labels), labels.max() + 1))
            for (_, held), result in zip(parts, results, strict=True):
                scores[held] = result
            temperature, log_loss = _temperature.fit(scores, labels)
            if best is None or log_loss < (best.log_loss or math.inf):
                accuracy = float(np.mean(scores.argmax(axis=1) == labels))
                best = Selection(candidate, temperature, folds, len(labels), accuracy, log_loss)
                worse = 0
            else:
                worse += 1
            if worse == PATIENCE:
                break
    return best


def _split(
    labels: NDArray[np.int64], folds: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(training rows, held-out rows) of every fold, each class spread evenly over the folds."""
    from sklearn.model_selection import StratifiedKFold

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # see `select`
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels))


def _subsample(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The rows that take part, in order: of each class the same share, but not fewer than `FOLDS` where it has them."""
    counts = np.bincount(labels)
    wanted = np.maximum(FOLDS, np.ceil(counts * min(1.0, MOST_ROWS / len(labels))))
    wanted[counts < 2] = 0
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(labels)) - starts[labels[by_class]]
    return np.sort(by_class[rank < wanted[labels[by_class]]])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
