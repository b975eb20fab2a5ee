"""One pass over labeled images: what the model gives for each, and what its file and its pixels are like."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.data.dataset import Sample
from tlkit.data.decoding import Header, UnreadableImage, header, read_file
from tlkit.evaluation.evaluate import run_samples
from tlkit.graph.metadata import score_names
from tlkit.plugin.contract import FEATURES, PROBABILITIES, Session
from tlkit.runtime.model import Model
from tlkit.runtime.session import Wrapped
from tlkit.util.resources import cores
from tlkit.util.statistics import unit

BRIGHTNESS, SHARPNESS = "pixels/brightness", "pixels/sharpness"
GRAY = np.array([0.299, 0.587, 0.114], np.float32) / 255


@dataclass(frozen=True)
class Images:
    """The readable ones of some labeled images, row by row, and the rejected ones: path to reason.

    `arrays` has the outputs of the model, and of what it sees the mean brightness (0 to 1) and the sharpness (mean
    absolute Laplacian). `seconds` is the time of the whole pass, with decoding.
    """

    samples: tuple[Sample, ...]
    arrays: Mapping[str, NDArray[np.float32]]
    sha256: tuple[str, ...]
    rejected: Mapping[str, str]
    seconds: float

    @cached_property
    def truth(self) -> NDArray[np.int64]:
        """The true class of each image."""
        return np.array([sample.label for sample in self.samples], np.int64)

    @property
    def probabilities(self) -> NDArray[np.float32]:
        return self.arrays[PROBABILITIES]

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each image."""
        predicted: NDArray[np.int64] = self.probabilities.argmax(1)
        return predicted

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """The probability of the predicted class."""
        confidence: NDArray[np.float32] = self.probabilities.max(1)
        return confidence

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        correct: NDArray[np.bool_] = self.predicted == self.truth
        return correct

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """Features `(N, width)` at norm 1: their products are cosines."""
        features: NDArray[np.float32] = unit(self.arrays[FEATURES])
        return features

    @cached_property
    def headers(self) -> list[Header | None]:
        """The headers of the files; None for a file that is gone since."""
        with ThreadPoolExecutor(cores()) as threads:
            return list(threads.map(_header, (sample.path for sample in self.samples)))

    @property
    def scores(self) -> dict[str, NDArray[np.float32]]:
        """The scores of the head by name."""
        own = (BRIGHTNESS, SHARPNESS)
        return {name: self.arrays[name] for name in score_names(self.arrays) if name not in own}


def pass_over(model: Model, samples: Sequence[Sample], tick: Callable[[int], object]) -> Images:
    """Run labeled images through a model; `tick(n)` is called when n more are done."""
    watched = Model(_Watched(model.session), model.file)
    wanted = [FEATURES, PROBABILITIES, *score_names(watched.session.outputs)]
    started = time.perf_counter()
    outputs = run_samples(watched, samples, tick, wanted)
    seconds = time.perf_counter() - started
    return Images(outputs.samples, outputs.arrays, outputs.sha256, outputs.rejected, seconds)


class _Watched(Wrapped):
    """A session that gives the brightness and the sharpness of its input as outputs of their own."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, (*session.outputs, BRIGHTNESS, SHARPNESS))

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        names = outputs or self.outputs
        arrays = self._session.run(array, [name for name in names if name not in (BRIGHTNESS, SHARPNESS)])
        gray = array @ GRAY
        middle = gray[:, 1:-1, 1:-1]
        around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
        return arrays | {BRIGHTNESS: gray.mean((1, 2)), SHARPNESS: np.abs(4 * middle - around).mean((1, 2))}


def _header(path: Path) -> Header | None:
    try:
        return header(read_file(path))
    except UnreadableImage:
        return None
