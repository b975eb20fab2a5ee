"""Choose the detector of unknown images, and its threshold.

No detector is the best everywhere. Each class in turn is left out of the training images: a detector is as good as it
tells that class from held-out images of the others (area under the ROC curve). The threshold keeps 95 % of the
validation images, which fitted neither head nor detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tlkit import defaults
from tlkit.model.novelty import WithoutClass, raw_scores, scaled
from tlkit.plugin.detection import Detector
from tlkit.plugin.options import to_json
from tlkit.training.config import TrainingConfig
from tlkit.training.inputs import Examples
from tlkit.util.statistics import roc_area

MAX_LEFT_OUT = 5  # classes
MAX_FITTED, MAX_KEPT = 400, 2000  # images that detectors are chosen on, and that the chosen one is fitted on
MIN_PER_CLASS = 10  # images that a class is left out with
KEPT = 0.95  # share of the validation images that stay known


def with_novelty(
    config: TrainingConfig, head: nn.Module, train: Examples, val: Examples
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the head with the chosen detector beside it, and what the bundle says of it; without detectors nothing."""
    if not config.detectors:
        return head, {}
    detector, report = choose(config.detectors, head, train, config.seed)
    rows = evenly(train.labels, MAX_KEPT, config.seed)
    fitted = detector.fit(train.features[rows], train.labels[rows], head, config.seed)
    novel = scaled(head, fitted, val.features, KEPT)
    distribution, version = config.detectors[detector]
    facts = {
        "name": detector.name,
        "distribution": distribution,
        "version": version,
        "options": to_json(detector),
        "threshold": 1.0,
        "kept": KEPT,
        "images": len(val.labels),
        **report,
    }
    return novel, facts


def choose(
    detectors: Mapping[Detector, tuple[str, str]], head: nn.Module, train: Examples, seed: int
) -> tuple[Detector, dict[str, Any]]:
    """Return the detector with the largest mean area under the ROC curve over classes that are left out, and the areas.

    With two classes, or too few images, the most even one over data sets is taken.
    """
    counts = np.bincount(train.labels)
    enough = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label] >= MIN_PER_CLASS]
    even = next((each for each in detectors if each.name == defaults.DEFAULT_DETECTOR), next(iter(detectors)))
    if len(detectors) == 1:
        return even, {}
    if len(enough) < 3:
        reason = "two classes" if len(counts) < 3 else f"too few classes of at least {MIN_PER_CLASS} images"
        return even, {"not_chosen": f"{reason}: none can be left out to choose by"}
    areas = {each.name: _areas(each, head, train, enough[:MAX_LEFT_OUT], seed) for each in detectors}
    means = {name: float(np.mean(found)) for name, found in areas.items()}
    best = max(detectors, key=lambda each: means[each.name])
    return best, {"areas": means, "left_out": len(enough[:MAX_LEFT_OUT])}


def _areas(detector: Detector, head: nn.Module, train: Examples, classes: list[int], seed: int) -> list[float]:
    found = []
    for label in classes:
        others = np.flatnonzero(train.labels != label)
        drawn = others[evenly(train.labels[others], 2 * MAX_FITTED, seed)]
        fitted_on, known = drawn[::2], drawn[1::2]
        novel = np.flatnonzero(train.labels == label)[:MAX_FITTED]
        fitted = detector.fit(train.features[fitted_on], train.labels[fitted_on], WithoutClass(head, label), seed)
        scores = raw_scores(fitted, train.features[np.concatenate([known, novel])])
        found.append(roc_area(scores[len(known) :], scores[: len(known)]))
    return found


def evenly(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Return up to so many rows at random, the same number of each class as far as there are."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        turn[rows] = np.arange(len(rows))
    chosen: NDArray[np.int64] = order[np.argsort(turn[order], kind="stable")][:most]
    return chosen
