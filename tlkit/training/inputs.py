"""Training inputs: features that are computed once, or images that are decoded while training runs.

A GPU plans its kernels again for each shape, which takes seconds, so batches are padded there to one number of rows;
the output for the padding is dropped before the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tlkit.data.augmentation import randaugment, random_view, transforms
from tlkit.data.preprocessing import Size, load
from tlkit.plugin.contract import Phase, Preprocessing
from tlkit.training import crops
from tlkit.training.device import Device
from tlkit.training.history import Line
from tlkit.util.prefetch import prefetch
from tlkit.util.resources import cores

if TYPE_CHECKING:
    from tlkit.training.activation_cache import ActivationCache

VAL_BATCH_SIZE = 64
PREFETCHED_BATCHES = 2  # decoded ahead of the training step

Image = TypeVar("Image")
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
    """Output of the frozen stages for images that are decoded in every epoch, or kept on the device if they fit there.

    They are kept as views, or, for new views in every epoch, before they are cropped, which the device does then. The
    stages see batches of so many `rows`, the last one padded; 0: as many as each has.
    """

    examples: Examples
    views: AugmentedViews
    frozen: nn.Module
    device: Device = field(default_factory=Device)
    rows: int = 0
    epochs: int = 1
    kept: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # uint8 `(S, S, 3)` by view and index
    uncropped: dict[tuple[int, int], crops.Kept | None] = field(default_factory=dict)  # by index and reduction
    sizes: dict[int, Size] = field(default_factory=dict)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels `(N,)`."""
        return self.examples.labels

    @cached_property
    def keeps(self) -> bool:
        """True if views are seen again and all of them fit on the device."""
        views = (self.views.views or self.epochs) if self.views.varies else 1
        size = views * len(self.labels) * 3 * self.views.preprocessing.size**2
        return views < self.epochs and size <= self.device.room()

    @cached_property
    def room(self) -> list[int]:
        """Bytes that are left on the device for images before they are cropped."""
        return [self.device.room()]

    @cached_property
    def cropped_there(self) -> bool:
        """True if the device crops the images."""
        return crops.usable(self)

    def batches(self, batches: Batches, epoch: int) -> Iterator[Tensor]:
        """Yield the output of the frozen stages for each batch, float32."""
        number = self.views.number(epoch) if self.views.varies else 0
        pixels = crops.pixels(self, batches, number) if self.cropped_there else self.pixels(batches, number)
        for batch, images in zip(batches, pixels, strict=True):
            with torch.no_grad(), self.device.autocast():
                output: Tensor = self.frozen(padded(images, self.rows))
            yield output[: len(batch)].float()

    def pixels(self, batches: Batches, number: int) -> Iterator[Tensor]:
        """Yield the images of each batch as view `number` has them, uint8 `(N, S, S, 3)`, on the device."""
        known, new = {index for view, index in self.kept if view == number}, list[list[int]]()
        for batch in batches:
            new.append([index for index in dict.fromkeys(map(int, batch)) if index not in known])
            known.update(new[-1] if self.keeps else ())

        def decode(index: int) -> NDArray[np.uint8]:
            return self.views.decode(self.examples.paths[index], number, index)

        images = self.ahead(decode, new)
        for batch, indices in zip(batches, new, strict=True):
            here, keys = dict[tuple[int, int], Tensor](), [(number, int(index)) for index in batch]
            if indices:
                decoded = self.device.put(torch.from_numpy(np.stack([next(images) for _ in indices])))
                here = dict(zip([(number, index) for index in indices], decoded, strict=True))
            self.kept.update(here if self.keeps else {})
            yield torch.stack([(here if key in here else self.kept)[key] for key in keys])

    @staticmethod
    def ahead(decode: Callable[[int], Image], batches: Sequence[Sequence[int]]) -> Iterator[Image]:
        """Yield the decoded images of all batches, some batches ahead."""
        ahead = cores() + PREFETCHED_BATCHES * max(map(len, batches))
        return prefetch(decode, chain.from_iterable(batches), workers=cores(), ahead=ahead)


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


def common_rows(images: int, batch_size: int, processes: int) -> int:
    """Return the rows of an epoch's largest batch, in each of so many processes."""
    return -(-max(map(len, split_batches(np.arange(images), batch_size))) // processes)


def padded(x: Tensor, rows: int) -> Tensor:
    """Return a batch with zeros behind it, up to so many rows."""
    return x if len(x) >= rows else F.pad(x, (*(0, 0) * (x.ndim - 1), 0, rows - len(x)))


def evaluate(
    model: nn.Module, inputs: Examples | DecodedImages | ActivationCache, device: Device, rows: int = 0
) -> Line:
    """Return mean cross-entropy and accuracy; batches are padded to so many `rows`, unless that is 0."""
    size, count = -(-rows // device.micro_batches) or VAL_BATCH_SIZE, len(inputs.labels)
    batches = np.split(np.arange(count), range(size, count, size))
    model.eval()
    with torch.inference_mode(), device.autocast():
        found = inputs.batches(batches, 0)
        logits = torch.cat([model(padded(device.put(x), rows and size))[: len(x)] for x in found]).float()
        truth = device.put(torch.from_numpy(inputs.labels))
        loss = F.cross_entropy(logits, truth).item()
        return {"val_loss": loss, "val_accuracy": (logits.argmax(1) == truth).float().mean().item()}
