"""Selection of the images to label next: those that stand for most of what a model is uncertain of.

Facility location over the features, weighted by the margins, with the labelled images as locations that are open
already (Wei, Iyer and Bilmes, "Submodularity in Data Subset Selection and Active Learning", ICML 2015; margins:
Scheffer, Decomain and Wrobel, IDA 2001). A k-center, which takes the farthest images, takes outliers: with few labels
it is worse than random choice, see benchmarks/suggest.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkit.graph.metadata import SOFTMAX

Array = NDArray[np.float32]

MAX_POOL = 4000  # images that are compared in pairs


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows that were chosen, in order: the distance of each to what was labelled or chosen before it.

    `similar` counts the images that each is the nearest of the chosen ones to, itself among them.
    """

    rows: NDArray[np.int64]
    distances: Array
    similar: NDArray[np.int64]


def margins(probabilities: Array, activation: str = SOFTMAX) -> Array:
    """Return the margin `(N,)` of images, 0 for the least certain: that of the two most probable labels.

    Of labels that don't exclude each other it is twice the least distance of a probability to a half.
    """
    if activation != SOFTMAX:
        return np.asarray(2 * np.abs(probabilities - 0.5).min(1), np.float32)
    if probabilities.shape[1] == 1:
        return np.ones(len(probabilities), np.float32)
    two = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0], np.float32)


def uncertainty(margin: Array, unknown: NDArray[np.bool_] | None = None) -> Array:
    """Return the weight `(N,)` of images: 1 minus the margin, and 1 for images of no known class."""
    weight = 1 - margin
    return weight if unknown is None else np.where(unknown, np.float32(1), weight)


def choose(features: Array, weight: Array, nearest: Array | None, count: int) -> Chosen:
    """Choose up to `count` images by their features `(N, width)` at norm 1 and weights `(N,)`, the most useful first.

    Greedily the image that brings the most weight nearest: the sum over all images of their weights times how much
    closer it is to them than what is labelled or chosen. `nearest` `(N,)` is the distance of each to the nearest
    labelled image, 1 minus the cosine, if that is known. Of more than `MAX_POOL` images the most uncertain are taken.
    """
    pool = np.argsort(-weight, kind="stable")[: max(MAX_POOL, count)]
    rows, mass = features[pool], weight[pool]
    distances = np.maximum(1 - rows @ rows.T, 0)
    covered = np.full(len(pool), distances.max(initial=0)) if nearest is None else np.maximum(nearest[pool], 0)
    gains, chosen, before = np.full(len(pool), np.inf), list[int](), list[float]()
    while len(chosen) < min(count, len(pool)):
        best = int(gains.argmax())
        gain = float(mass @ np.maximum(covered - distances[best], 0))
        gains[best] = -np.inf
        if gain < gains.max(initial=-np.inf):  # gains only fall: the others' may be out of date, and are no higher
            gains[best] = gain
            continue
        chosen.append(best)
        before.append(float(covered[best]))
        covered = np.minimum(covered, distances[best])
    owner = (features @ rows[chosen].T).argmax(1)
    return Chosen(pool[chosen], np.array(before, np.float32), np.bincount(owner, minlength=len(chosen)))
