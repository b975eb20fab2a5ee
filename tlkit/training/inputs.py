"""What the loop learns from: features that are there, or images that are decoded while it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from tlkit.data.augmentation import randaugment, random_view
from tlkit.data.preprocessing import load
from tlkit.plugin.contract import Phase, Preprocessing
from tlkit.util.prefetch import prefetch
from tlkit.util.resources import cores

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
    preprocessing: Preprocessing


@dataclass(frozen=True, slots=True)
class AugmentedViews:
    """How an image differs from epoch to epoch: by a random crop, and by distortions of a magnitude.

    Each view is drawn from the seed, its number and the image alone. With `views` there are so many of each image, and
    epochs take turns at them; with 0 every epoch sees another.
    """

    seed: int
    crop: bool = False
    magnitude: int = 0
    views: int = 0

    @classmethod
    def of(cls, phase: Phase, seed: int, views: int) -> AugmentedViews:
        """What a phase asks for."""
        return cls(seed, phase.augment, phase.randaugment, min(views, phase.epochs))

    @property
    def varies(self) -> bool:
        """Whether it does at all; otherwise an image is always seen as the deployed graph sees it."""
        return self.crop or self.magnitude > 0

    def number(self, epoch: int) -> int:
        """The number of the view in an epoch."""
        return (epoch - 1) % self.views if self.views else epoch

    def see(self, path: Path, preprocessing: Preprocessing, number: int, row: int) -> NDArray[np.uint8]:
        """View `number` of an image, uint8 `(S, S, 3)`."""
        image = load(path, preprocessing, view=random_view(self.seed, number, row) if self.crop else None)
        return randaugment(image, self.magnitude, [self.seed, number, row, 1]) if self.magnitude else image


@dataclass(frozen=True)
class Decoded(Inputs):
    """Images as the frozen stages give them on, decoded anew in every epoch."""

    images: Images
    frozen: nn.Module
    variety: AugmentedViews
    device: torch.device | None = None

    @property
    def labels(self) -> NDArray[np.int64]:  # type: ignore[override]  # a field of others
        return self.images.labels

    def batches(self, batches: Batches, epoch: int) -> Iterator[Tensor]:
        number = self.variety.number(epoch)

        def see(row: int) -> NDArray[np.uint8]:
            return self.variety.see(self.images.paths[row], self.images.preprocessing, number, row)

        rows = (int(row) for batch in batches for row in batch)
        most = cores() + AHEAD * max(map(len, batches))
        seen = prefetch(see, rows, workers=cores(), ahead=most)
        for batch in batches:
            yield self._through(np.stack([next(seen) for _ in batch]))

    def _through(self, images: NDArray[np.uint8]) -> Tensor:
        with torch.no_grad():
            given: Tensor = self.frozen(torch.from_numpy(images).to(self.device, non_blocking=True))
            return given
