"""The peak of every channel of every stage: where an image excites it most, and which images of a dataset do.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, figure 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlkit.data.dataset import Sample
from tlkit.plugin.contract import Preprocessing, Session
from tlkit.runtime.pipeline import stream
from tlkit.runtime.session import Wrapped

PATCH = 3  # positions of a map that a patch is wide
MIN_PATCH = 24  # pixels
MAX_PREFIX = 16  # tokens before those of the patches

Array = NDArray[np.float32]


class Patch(NamedTuple):
    """Part of an image that excites a channel: its activation, and the box in the preprocessed image."""

    sample: Sample
    activation: float
    box: tuple[int, int, int, int]  # left, top, right, bottom


class StageMaps(Wrapped):
    """Images to the maps of the stages `(N, h, w, channels)`; stages without positions are left out.

    `session` gives the features of every stage, then their maps, in the order of `names`.
    """

    def __init__(self, session: Session, names: Sequence[str]) -> None:
        super().__init__(session, names)
        features, maps = (session.outputs[start : start + len(names)] for start in (0, len(names)))
        self._made_of = dict(zip(names, zip(features, maps, strict=True), strict=True))

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        wanted = {name: self._made_of[name] for name in outputs or self.outputs}
        arrays = self._session.run(array, [each for pair in wanted.values() for each in pair])
        spread = {name: spatial(arrays[maps], arrays[features].shape[1]) for name, (features, maps) in wanted.items()}
        return {name: each for name, each in spread.items() if each is not None}


class Peaks(Wrapped):
    """Images to the peak of every channel of a stage, and its position in a row of all: each `(N, channels)`."""

    def __init__(self, maps: StageMaps, stages: Sequence[str]) -> None:
        super().__init__(maps, [name for stage in stages for name in (stage, place(stage))])
        self._stages = stages

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for stage, maps in self._session.run(array, self._stages).items():
            flat = maps.reshape(len(maps), -1, maps.shape[-1])
            where = flat.argmax(1)
            found[stage] = np.take_along_axis(flat, where[:, None], 1)[:, 0]
            found[place(stage)] = where.astype(np.float32)
        return {name: found[name] for name in outputs or self.outputs}


def place(stage: str) -> str:
    """Return the name of the output with the positions of a stage's peaks."""
    return f"{stage}/place"


def spatial(maps: Array, width: int) -> Array | None:
    """Return maps as `(N, h, w, width)`, or None if they have no positions; tokens `(N, T, width)` fill a square."""
    if maps.ndim == 4:
        # The graph moves the second axis to the end, where the channels of some networks were already.
        return maps if maps.shape[3] == width else maps.transpose(0, 3, 1, 2) if maps.shape[2] == width else None
    if maps.ndim != 3 or maps.shape[2] != width:
        return None
    side = math.isqrt(maps.shape[1])
    prefix = maps.shape[1] - side**2
    if side < 2 or prefix > MAX_PREFIX:
        return None
    return maps[:, prefix:].reshape(len(maps), side, side, width)


@dataclass(slots=True)
class Exciting:
    """Images `(channels, kept)` with the highest peaks of each channel, one of each; statistics of all peaks."""

    activations: Array
    rows: NDArray[np.int64]  # of the samples; -1 where there are none yet
    places: NDArray[np.int64]
    count: int
    total: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def empty(cls, channels: int, kept: int) -> Exciting:
        """Return that of no image."""
        none = np.full((channels, kept), -1)
        low = np.full((channels, kept), -np.inf, np.float32)
        return cls(low, none, none.copy(), 0, np.zeros(channels), np.zeros(channels))

    def add(self, rows: Sequence[int], peaks: Array, places: Array) -> None:
        """Take in the peaks `(N, channels)` of more images, and their positions."""
        kept = self.activations.shape[1]
        given = np.broadcast_to(np.asarray(rows)[:, None], peaks.shape)
        activations = np.concatenate([self.activations, peaks.T], 1)
        order = np.argsort(-activations, axis=1, kind="stable")[:, :kept]
        self.activations = np.take_along_axis(activations, order, 1)
        self.rows = np.take_along_axis(np.concatenate([self.rows, given.T], 1), order, 1)
        self.places = np.take_along_axis(np.concatenate([self.places, places.T.astype(np.int64)], 1), order, 1)
        self.count += len(peaks)
        self.total += peaks.sum(0, dtype=np.float64)
        self.squares += (peaks.astype(np.float64) ** 2).sum(0)

    def stands_out(self, own: Array) -> NDArray[np.float64]:
        """Return by how many standard deviations the peaks `(channels,)` of an image are above those of all."""
        mean = self.total / max(1, self.count)
        deviation = np.sqrt(np.maximum(self.squares / max(1, self.count) - mean**2, 0))
        known = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6)
        return np.where(known, (own - mean) / np.where(known, deviation, 1), -np.inf if known.any() else own)

    def patches(self, channel: int, samples: Sequence[Sample], shape: tuple[int, int], size: int) -> list[Patch]:
        """Return the patches around the highest peaks, in maps of a shape over images of `size` pixels."""
        found = zip(self.activations[channel], self.rows[channel], self.places[channel], strict=True)
        return [Patch(samples[row], float(peak), box(int(at), shape, size)) for peak, row, at in found if row >= 0]


def box(at: int, shape: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """Return the square of `PATCH` positions around one of a map of this shape: left, top, right, bottom in pixels."""
    height, width = shape
    half = min(max(MIN_PATCH, PATCH * size // max(shape)), size) // 2
    row, column = divmod(at, width)
    x, y = (round((each + 0.5) * size / count) for each, count in ((column, width), (row, height)))
    left, top = (min(max(0, each - half), size - 2 * half) for each in (x, y))
    return left, top, left + 2 * half, top + 2 * half


def exciting(
    maps: StageMaps,
    channels: Mapping[str, int],
    preprocessing: Preprocessing,
    samples: Sequence[Sample],
    kept: int,
    tick: Any,
) -> dict[str, Exciting]:
    """Return the images that excite every channel most, by stage; `channels` is the number of a stage's."""
    found = {stage: Exciting.empty(count, kept) for stage, count in channels.items()}
    first = 0
    for batch in stream(Peaks(maps, list(channels)), preprocessing, [sample.path for sample in samples]):
        rows = [first + index for index, image in enumerate(batch.images) if image.reason is None]
        for stage, each in found.items() if rows else ():
            each.add(rows, batch.arrays[stage], batch.arrays[place(stage)])
        first += len(batch.images)
        tick(len(batch.images))
    return found
