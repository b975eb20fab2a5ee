"""Selection of the images to label next: uncertain ones, each unlike the labelled ones and those chosen before it.

A weighted k-centre: greedily the image with the largest product of its uncertainty and its distance to the nearest
image that is labelled or chosen (k-centre greedy: Sener and Savarese, "Active Learning for Convolutional Neural
Networks: A Core-Set Approach", ICLR 2018; margins: Scheffer, Decomain and Wrobel, IDA 2001).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkit.graph.metadata import SOFTMAX

Array = NDArray[np.float32]


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
    """Choose up to `count` images by their features `(N, width)` at norm 1 and weights `(N,)`.

    `nearest` `(N,)` is the distance of each to the nearest labelled image, 1 minus the cosine, if that is known; else
    the first one is the most uncertain. Of equal images the first is chosen.
    """
    total = len(features)
    distance = np.full(total, 2.0, np.float32) if nearest is None else np.maximum(nearest, 0).astype(np.float32)
    owner, near = np.zeros(total, np.int64), np.full(total, np.inf, np.float32)
    left = np.ones(total, bool)
    rows, found = list[int](), list[float]()
    for number in range(min(count, total)):
        row = int(np.where(left, weight * np.sqrt(distance), -1).argmax())
        left[row] = False
        rows.append(row)
        found.append(float(distance[row]))
        own = np.maximum(1 - features @ features[row], 0)
        owner, near = np.where(own < near, number, owner), np.minimum(own, near)
        distance = np.minimum(distance, own)
    return Chosen(np.array(rows), np.array(found, np.float32), np.bincount(owner, minlength=len(rows)))
