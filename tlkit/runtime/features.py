"""Cached features of many images through the deployed runtime, row = index of the image.

Each image is decoded once: another head, cut or PCA size reads the features of all stages from the cache, and an
interrupted run continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlkit.data.decoding import check_max_bad
from tlkit.model.cut import select
from tlkit.plugin.contract import Preprocessing
from tlkit.runtime.feature_cache import FeatureCache, identify
from tlkit.runtime.pipeline import stream
from tlkit.runtime.session import OnnxSession
from tlkit.util.arrays import take, zeros
from tlkit.util.resources import cores

SAVE_EVERY = 128  # batches; an interrupted run loses at most these


@dataclass(frozen=True, slots=True)
class Features:
    """`array[i]` `(width,)` belongs to file i if `usable[i]`; the others were rejected for the reason given.

    Without a cut, a row holds the features of all `stages`, shallow to deep, of the `widths` given.
    """

    array: NDArray[np.float32]
    usable: NDArray[np.bool_]
    rejected: dict[int, str]
    decoded: int  # images decoded for this; the rest came from the cache
    sha256: tuple[str, ...] = ()  # of each file, hex; empty if it was rejected
    stages: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()

    def rows(self, indices: Sequence[int]) -> Features:
        """Return the features of some files, in this order."""
        of = list(indices)
        rejected = {new: self.rejected[old] for new, old in enumerate(of) if old in self.rejected}
        hashes = tuple(self.sha256[index] for index in of)
        return replace(self, array=take(self.array, of), usable=self.usable[of], rejected=rejected, sha256=hashes)

    def at(self, cut: str, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return the features `(N, width)` of all or some rows at a cut, if they were extracted without one."""
        return select(self.array if rows is None else self.array[rows], cut, self.stages, self.widths)


def extract(
    files: Sequence[Path],
    graph: Path,
    preprocessing: Preprocessing,
    stages: Sequence[str],
    cut: str | None,
    tick: Callable[[int], object],
) -> Features:
    """Return features `(N, width)` of each file at `cut`, or of all stages without a cut.

    `graph` outputs those of all `stages`, and all are cached, whatever the cut. `tick(n)` is called when n more images
    are done.
    """
    session = OnnxSession(graph, workers=cores())
    with FeatureCache(graph, preprocessing, session.setting) as cache:
        identities = [identify(file) for file in files]  # before they are read: a later change gives another
        widths = cache.widths or _widths(session, preprocessing)
        cache.widths = widths

        def chosen(row: NDArray[np.float32]) -> NDArray[np.float32]:
            return row if cut is None else select(row[None], cut, stages, widths)[0]

        width = len(chosen(np.zeros(sum(widths), np.float32)))
        array, usable = zeros((len(files), width)), np.zeros(len(files), bool)
        hashes, missing = [""] * len(files), list[int]()
        for index, file in enumerate(files):
            cached = cache.get(file, identities[index], sum(widths))
            if cached is None:
                missing.append(index)
            else:
                array[index], hashes[index], usable[index] = chosen(cached[0]), cached[1], True
        tick(len(files) - len(missing))

        rejected: dict[int, str] = {}
        order = iter(missing)
        images = [files[index] for index in missing]
        batches = stream(session, preprocessing, images, session.outputs, hashed=True)
        for number, batch in enumerate(batches, start=1):
            stage_arrays = [batch.arrays[name] for name in session.outputs] if batch.readable() else []
            rows = iter(np.concatenate(stage_arrays, axis=1) if stage_arrays else ())
            for image in batch.images:
                index = next(order)
                if image.reason is not None:
                    rejected[index] = image.reason
                    continue
                row: NDArray[np.float32] = next(rows)
                cache.add(files[index], identities[index], image.sha256, row)
                array[index], usable[index], hashes[index] = chosen(row), True, image.sha256
            if number % SAVE_EVERY == 0:
                cache.save()
            tick(len(batch.images))
    return Features(array, usable, rejected, len(missing) - len(rejected), tuple(hashes), tuple(stages), tuple(widths))


def check_rejected(features: Features, files: Sequence[Path], max_bad: float) -> None:
    """Raise a DataError if more than the share `max_bad` of the files is unreadable."""
    check_max_bad({str(files[index]): reason for index, reason in features.rejected.items()}, len(files), max_bad)


def _widths(session: OnnxSession, preprocessing: Preprocessing) -> list[int]:
    """Return the width of each stage's features, from running one black image."""
    black = np.zeros((1, preprocessing.size, preprocessing.size, 3), np.uint8)
    return [array.shape[1] for array in session.run(black).values()]
