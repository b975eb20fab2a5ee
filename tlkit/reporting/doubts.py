"""Labels that are doubtful, by a classifier of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from tlkit.model import reference_images
from tlkit.plugin.contract import FEATURES
from tlkit.reporting.images import Images

MAX_JUDGED = 4000  # images whose labels are judged by a classifier of their own, and with many classes
MAX_LOGITS = 400_000  # images times classes
MIN_JUDGED = 40


@dataclass(frozen=True, slots=True)
class Doubts:
    """Labels that a classifier cross-validated on these very images finds far less likely than another class.

    `likely` maps rows to that class; `judged` images were drawn without regard to the model, and `doubtful` of them
    are among these.
    """

    likely: dict[int, int]
    judged: int
    doubtful: int


def doubts(images: Images, shown: Sequence[int], classes: int) -> Doubts | None:
    """Return the doubtful labels among an even draw of images and the rows `shown`.

    None without scikit-learn, or with too few images of a class. The model itself is no judge of its own mistakes.
    """
    count = len(images.samples)
    if find_spec("sklearn") is None or count < MIN_JUDGED or classes < 2:
        return None
    from tlkit.audit.labels import cross_validated_probabilities, suspects

    order = np.argsort(images.truth, kind="stable")
    drawn = reference_images.spread(order.tolist(), min(MAX_JUDGED, MAX_LOGITS // classes))
    rows = np.array(sorted({*drawn, *shown}))
    truth = images.truth[rows]
    if len(rows) < 5 * classes or np.bincount(truth).max() < 5 or len(np.unique(truth)) < 2:
        return None
    same_file = np.unique([images.sha256[row] for row in rows], return_inverse=True)[1]
    probabilities = cross_validated_probabilities(images.arrays[FEATURES][rows], truth, classes, 0, same_file)
    likely = {int(rows[index]): label for index, label in suspects(probabilities, truth)}
    return Doubts(likely, len(drawn), len(set(drawn) & likely.keys()))
