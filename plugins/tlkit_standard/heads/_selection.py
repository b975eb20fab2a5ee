"""Model selection: every candidate is judged on rows it was not fitted to, and the temperature is fitted to those."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tlkit.util.resources import cores
from tlkit_standard.heads import _temperature

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float64]
    Labels = NDArray[np.int64]
    Fold = tuple[NDArray[np.int64], NDArray[np.int64]]  # which rows to fit to, and which to judge by

FOLDS = 5
MOST_ROWS = 3000  # that take part: more move the choice by less than a step of the grids
MATERIAL = 0.005  # by what share the log-loss must fall for a weaker regularisation: less is a tie, for the stronger

# From a candidate to the scores `(n, classes)` of a fold's held-out rows. It is asked for one candidate after the
# other, so that it may start from where the last one ended.
Scorer = Callable[[float], "NDArray[np.float64]"]
# (rows to fit to, their labels, held-out rows) -> Scorer. All that is fitted, scales included, is fitted in there.
OpenFold = Callable[["Rows", "Labels", "Rows"], Scorer]


@dataclass(frozen=True)
class Path:
    """Candidates, the strongest regularisation first; `start` is the index of the one to expect."""

    values: Sequence[float]
    start: int = 0

    @property
    def expected(self) -> float:
        """What to take without evidence."""
        return self.values[self.start]


@dataclass(frozen=True)
class Evidence:
    """How the chosen candidate did on held-out rows, at its temperature."""

    folds: int
    images: int
    accuracy: float
    log_loss: float


@dataclass(frozen=True)
class Selection:
    """The candidate that was chosen, its temperature, and why; no evidence where nothing was held out."""

    choice: float
    temperature: float = 1.0
    evidence: Evidence | None = None


def select(path: Path, open_fold: OpenFold, rows: Rows, labels: Labels, seed: int) -> Selection:
    """The candidate with the least out-of-fold log-loss, each at its own best temperature.

    The log-loss, not the accuracy: on 200 to 6,000 images it is a smooth curve with one minimum, where the accuracy
    is flat within its noise, and its choice was never more than half a point of accuracy below the best. One
    minimum also allows to walk from the expected candidate as long as it gets better, three or four candidates
    instead of all, and to skip the weakest, which take longest.

    A class with a single row can be learnt or judged, not both, and takes no part. A class with fewer rows than there
    are folds does: its rows fall into different folds, so every fit sees some. Where no two classes are left,
    nothing can be held out and the expected candidate is returned.
    """
    drawn = _draw(labels, seed)
    rows, labels = rows[drawn], np.unique(labels[drawn], return_inverse=True)[1]
    counts = np.bincount(labels)
    if len(counts) < 2:
        return Selection(path.expected)
    folds = _split(labels, min(FOLDS, int(counts.max())), seed)
    with ThreadPoolExecutor(min(len(folds), cores())) as threads:
        scorers = list(threads.map(lambda fold: open_fold(rows[fold[0]], labels[fold[0]], rows[fold[1]]), folds))

        def judge(index: int) -> tuple[float, Selection]:
            value = path.values[index]
            scores = np.empty((len(labels), len(counts)))
            for (_, held), of_fold in zip(folds, threads.map(lambda scorer: scorer(value), scorers), strict=True):
                scores[held] = of_fold
            temperature, log_loss = _temperature.fit(scores, labels)
            accuracy = float(np.mean(scores.argmax(axis=1) == labels))
            return log_loss, Selection(value, temperature, Evidence(len(folds), len(labels), accuracy, log_loss))

        return _walk(path, judge)


def _walk(path: Path, judge: Callable[[int], tuple[float, Selection]]) -> Selection:
    """The best candidate downhill from the start: towards the weaker, or if that is no better the stronger."""
    least, best = judge(path.start)
    for step, share in ((1, 1.0 - MATERIAL), (-1, 1.0)):
        index = path.start + step
        while 0 <= index < len(path.values):
            loss, selection = judge(index)
            if loss > share * least:
                break
            least, best, index = loss, selection, index + step
        if best.choice != path.expected:
            break
    return best


def _split(labels: Labels, folds: int, seed: int) -> list[Fold]:
    from sklearn.model_selection import StratifiedKFold

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # see `select`
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels))


def _draw(labels: Labels, seed: int) -> NDArray[np.int64]:
    """The rows that take part, in order: the same share of each class, but `FOLDS` of it where it has as many."""
    counts = np.bincount(labels)
    wanted = np.maximum(FOLDS, counts * min(1.0, MOST_ROWS / len(labels)))
    wanted[counts < 2] = 0
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[by_class]]
    return np.sort(by_class[rank < wanted[labels[by_class]]])
