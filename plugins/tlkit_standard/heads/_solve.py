"""How every solved head is solved: check, transform, choose by cross-validation, fit on all rows, calibrate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from tlkit_standard.heads import _affine
from tlkit_standard.heads._checks import check
from tlkit_standard.heads._modules import Front
from tlkit_standard.heads._selection import Scorer, Selection, select

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from tlkit_standard.heads._affine import Affine
    from tlkit_standard.heads._options import SolvedHead

    Rows = NDArray[np.float64]
    Labels = NDArray[np.int64]

Fact = float | int | str | None


class Method(ABC):
    """One way to fit a classifier to rows that power, L2 norm and affine map have been through.

    Labels are 0..classes-1, each of them present; scores are what the module's logits would be at temperature 1.
    """

    rotates: ClassVar[bool] = False  # whether a rotation of the rows' space leaves the solution what it is

    @abstractmethod
    def candidates(self, rows: Rows, labels: Labels) -> Sequence[float]:
        """What to choose from, the strongest regularisation first."""

    @abstractmethod
    def fallback(self, rows: Rows, labels: Labels) -> float:
        """What to take where cross-validation is impossible."""

    @abstractmethod
    def scorer(self, rows: Rows, labels: Labels, held: Rows) -> Scorer:
        """From a candidate to the scores `(n, classes)` of the rows `held` out. Speed goes before the last digit."""

    @abstractmethod
    def module(
        self, front: Front, affine: Affine, rows: Rows, labels: Labels, choice: float, temperature: float
    ) -> tuple[nn.Module, dict[str, Fact]]:
        """The module fitted to all `rows` (the images under `affine`), and what to record of it."""


def solve(
    head: SolvedHead, method: Method, features: NDArray[np.float32], labels: Labels, classes: int, seed: int
) -> nn.Module:
    """The solved module in eval mode; its plain attribute `report` tells what was chosen."""
    check(features, labels, classes, pca=head.pca)
    front = Front(head.power, head.l2)
    with torch.inference_mode():
        raw = front(torch.from_numpy(features.astype(np.float64))).numpy()
    # One thread for each BLAS call: scikit-learn's solvers alternate between NumPy's and SciPy's pools, which then
    # spin against each other (2.9 s against 1.1 s for 6,000 x 1,280 rows on two cores). Folds run side by side instead.
    with threadpool_limits(1, user_api="blas"):
        affine = _fit_affine(head, method, raw)
        rows = affine(raw)
        chosen = _choose(head, method, raw, rows, labels, seed)
        module, facts = method.module(front, affine, rows, labels, chosen.choice, chosen.temperature)
    module.__dict__["report"] = facts | _record(chosen)
    return module.eval()


def _fit_affine(head: SolvedHead, method: Method, raw: Rows) -> Affine:
    affine = _affine.fit(raw, standardise=head.standardise, pca=head.pca, whiten=head.whiten)
    return _affine.rotate(affine, raw) if method.rotates else affine


def _choose(head: SolvedHead, method: Method, raw: Rows, rows: Rows, labels: Labels, seed: int) -> Selection:
    def open_fold(train: Rows, train_labels: Labels, held: Rows) -> Scorer:
        affine = _fit_affine(head, method, train)
        return method.scorer(affine(train), train_labels, affine(held))

    candidates = method.candidates(rows, labels)
    if len(candidates) == 1 and not head.calibrate:
        return Selection(candidates[0])
    chosen = select(candidates, open_fold, raw, labels, seed)
    if chosen is None:
        return Selection(candidates[0] if len(candidates) == 1 else method.fallback(rows, labels))
    return chosen if head.calibrate else replace(chosen, temperature=1.0)


def _record(chosen: Selection) -> dict[str, Fact]:
    return {
        "temperature": chosen.temperature,
        "cv_folds": chosen.folds,
        "cv_images": chosen.rows,
        "cv_accuracy": chosen.accuracy,
        "cv_log_loss": chosen.log_loss,
    }
