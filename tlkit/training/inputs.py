"""Training inputs: features that are computed once, or images that are decoded while training runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlkit.data.augmentation import randaugment, random_view, transforms
from tlkit.data.preprocessing import load
from tlkit.plugin.contract import Phase, Preprocessing
from tlkit.util.prefetch import prefetch
from tlkit.util.resources import cores

PREFETCHED_BATCHES = 2  # decoded ahead of the training step

Batches = Sequence["NDArray[np.int64]"]  # image indices of each step
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # inputs, labels -> mixed inputs, class probabilities


@dataclass(frozen=True, slots=True)
class Examples:
    """Images of one split: features `(N, width)` of the deployed trunk before training, labels `(N,)`, files."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    paths: Sequence[Path] = ()
    groups: NDArray[np.int64] | None = None  # numbers `(N,)`; images of one group stay together in a cross-validation

    def rows(self, rows: NDArray[np.int64]) -> Examples:
        """Return some of the images."""
        paths = [self.paths[row] for row in rows] if self.paths else ()
        groups = None if self.groups is None else self.groups[rows]
        return Examples(self.features[rows], self.labels[rows], paths, groups)

    def batches(self, batches: Batches, epoch: int) -> Iterator[Tensor]:
        """Yield the features of each batch; every epoch sees the same ones."""
        return (torch.from_numpy(self.features[rows]) for rows in batches)


@dataclass(frozen=True, slots=True)
class AugmentedViews:
    """Views of an image: random crops, mirrored or not, and RandAugment distortions of a magnitude.

    A view follows from the seed, its number and the image's index alone. With `views` there are that many per image,
    and epochs use them in rotation; 0 draws a new view every epoch.
    """

    preprocessing: Preprocessing
    seed: int
    crop: bool = False
    magnitude: int = 0
    views: int = 0

    @classmethod
    def from_phase(cls, phase: Phase, preprocessing: Preprocessing, seed: int, views: int) -> AugmentedViews:
        """Return the views that a phase asks for, at most one per epoch."""
        wanted = phase.augmentation
        return cls(preprocessing, seed, wanted.crop, wanted.randaugment, min(views, phase.epochs))

    @property
    def varies(self) -> bool:
        """True if views differ; otherwise each is the image as the deployed graph receives it."""
        return self.crop or self.magnitude > 0

    def number(self, epoch: int) -> int:
        """Return the number of the view that an epoch, counted from 1 through all phases, uses."""
        return (epoch - 1) % self.views if self.views else epoch

    def decode(self, path: Path, number: int, index: int) -> NDArray[np.uint8]:
        """Return view `number` of an image, uint8 `(S, S, 3)`."""
        image = load(path, self.preprocessing, view=random_view(self.seed, number, index) if self.crop else None)
        return randaugment(image, self.magnitude, [self.seed, number, index, 1]) if self.magnitude else image


@dataclass(frozen=True)
class DecodedImages:
    """Output of the frozen stages for images that are decoded again in every epoch."""

    examples: Examples
    views: AugmentedViews
    frozen: nn.Module
    device: torch.device | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels `(N,)`."""
        return self.examples.labels

    def batches(self, batches: Batches, epoch: int) -> Iterator[Tensor]:
        """Yield the output of the frozen stages for each batch."""
        number = self.views.number(epoch)

        def decode(index: int) -> NDArray[np.uint8]:
            return self.views.decode(self.examples.paths[index], number, index)

        indices = (int(index) for batch in batches for index in batch)
        ahead = cores() + PREFETCHED_BATCHES * max(map(len, batches))
        images = prefetch(decode, indices, workers=cores(), ahead=ahead)
        for batch in batches:
            stacked = torch.from_numpy(np.stack([next(images) for _ in batch]))
            with torch.no_grad():
                output: Tensor = self.frozen(stacked.to(self.device, non_blocking=True))
            yield output


def split_batches(order: NDArray[np.int64], size: int) -> Batches:
    """Return the indices in batches of `size`; a last single one joins the batch before, for batch statistics."""
    parts = np.split(order, range(size, len(order), size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def mixing(phase: Phase, classes: int) -> Mix | None:
    """Return the function that mixes the inputs of a batch, with mixup, CutMix or a random choice of the two.

    Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019. After frozen stages their output is mixed: Verma
    et al., "Manifold Mixup", ICML 2019.
    """
    wanted = phase.augmentation
    if not (wanted.mixup or wanted.cutmix):
        return None
    v2 = transforms()
    alphas = {v2.MixUp: wanted.mixup, v2.CutMix: wanted.cutmix}
    active: list[Mix] = [kind(alpha=alpha, num_classes=classes) for kind, alpha in alphas.items() if alpha]
    return active[0] if len(active) == 1 else v2.RandomChoice(active)
