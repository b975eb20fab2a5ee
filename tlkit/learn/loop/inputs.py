"""What the loop learns from: features that are there, or images that are decoded while it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from tlkit.data.images import load
from tlkit.data.views import draw
from tlkit.deploy.session import cores
from tlkit.plugin.contract import Pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

AHEAD = 2  # batches that are decoded while one is learnt from

Batches = Sequence["NDArray[np.int64]"]  # the indices of the images of each step


class Inputs(ABC):
    """Labelled inputs of whatever learns, by index."""

    labels: NDArray[np.int64]

    @abstractmethod
    def batches(self, batches: Batches, epoch: int) -> Iterator[Tensor]:
        """The inputs of each batch in turn; `epoch` counts through all phases."""


@dataclass(frozen=True, slots=True)
class Examples(Inputs):
    """Features `(N, width)` and labels `(N,)`."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def batches(self, batches: Batches, epoch: int) -> Iterator[Tensor]:
        return (torch.from_numpy(self.features[rows]) for rows in batches)


@dataclass(frozen=True, slots=True)
class Images:
    """Image files with their labels `(N,)`, and the recipe they are decoded by."""

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    pixels: Pixels


@dataclass(frozen=True)
class Decoded(Inputs):
    """Images as the frozen stages give them on, decoded anew in every epoch.

    With `augment` each is seen through another view in each epoch, otherwise as the deployed graph sees it.
    """

    images: Images
    frozen: nn.Module
    seed: int
    augment: bool

    @property
    def labels(self) -> NDArray[np.int64]:  # type: ignore[override]  # a field of others
        return self.images.labels

    def batches(self, batches: Batches, epoch: int) -> Iterator[Tensor]:
        pending: deque[list[Future[NDArray[np.uint8]]]] = deque()
        pool = ThreadPoolExecutor(cores(), thread_name_prefix="tlkit")
        try:
            for rows in batches:
                pending.append([pool.submit(self._pixels, int(row), epoch) for row in rows])
                if len(pending) > AHEAD:
                    yield self._through(pending.popleft())
            while pending:
                yield self._through(pending.popleft())
        finally:  # also when the loop stops early
            pool.shutdown(cancel_futures=True)

    def _pixels(self, row: int, epoch: int) -> NDArray[np.uint8]:
        view = draw(self.seed, epoch, row) if self.augment else None
        return load(self.images.paths[row], self.images.pixels, view=view)

    def _through(self, batch: Sequence[Future[NDArray[np.uint8]]]) -> Tensor:
        with torch.no_grad():
            given: Tensor = self.frozen(torch.from_numpy(np.stack([image.result() for image in batch])))
            return given
