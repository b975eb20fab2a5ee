"""Random crops of images that stay on a GPU, decoded once, bit for bit as Pillow makes them.

Pillow resamples with integers (libImaging/Resample.c): each pixel is a sum of neighbors with weights of 22 bits, first
along the rows, then along the columns, rounded after each; from Pillow 13 on, tall images first along the columns. So
any device gives the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import chain
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tlkit.data.augmentation import Box, View, random_view
from tlkit.data.preprocessing import Extent, Size, Uncropped, decode, part, reduction
from tlkit.training.inputs import Batches, DecodedImages

BITS = 22  # of a weight's fraction
TALL_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
TOGETHER = 16  # images that are resampled at once, which bounds the memory
LARGEST = 32  # times the pixels of a crop: images with more are cropped on the CPU

Turn = Callable[[Tensor], Tensor]  # of `(S, S, 3)`
_TURNS: Mapping[Image.Transpose, Turn] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda image: image.flip(1),
    Image.Transpose.FLIP_TOP_BOTTOM: lambda image: image.flip(0),
    Image.Transpose.ROTATE_90: lambda image: image.rot90(1),
    Image.Transpose.ROTATE_180: lambda image: image.rot90(2),
    Image.Transpose.ROTATE_270: lambda image: image.rot90(3),
    Image.Transpose.TRANSPOSE: lambda image: image.transpose(0, 1),
    Image.Transpose.TRANSVERSE: lambda image: image.rot90(2).transpose(0, 1),
}


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x < 1, 1 - x, 0.0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * -0.5, 0.0))


_FILTERS = {"bilinear": (1.0, _triangle), "bicubic": (2.0, _cubic)}  # width on one side, weight at a distance


def weights(
    ends: NDArray[np.float64], lengths: NDArray[np.int64], size: int, interpolation: str
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the first neighbor of each of `size` pixels `(N, size)`, and the weights of all `(N, size, K)`.

    `ends` `(N, 2)` are where the crops begin and end on one axis, `lengths` the pixels that the images have there.
    """
    width, weigh = _FILTERS[interpolation]
    start, end = ends.astype(np.float32).T
    scale = (end - start).astype(np.float64) / size
    stretch = np.maximum(scale, 1.0)[:, None]
    center = start.astype(np.float64)[:, None] + (np.arange(size) + 0.5) * scale[:, None]
    first = np.maximum((center - width * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((center + width * stretch + 0.5).astype(np.int64), lengths[:, None])
    neighbors = first[..., None] + np.arange((last - first).max())
    distance = np.abs((neighbors - center[..., None] + 0.5) * (1 / stretch[..., None]))
    found = np.where(neighbors < last[..., None], weigh(distance), 0.0)
    found /= np.add.accumulate(found, axis=-1)[..., -1:]  # in their order, as Pillow adds them
    return first, np.trunc(found * 2**BITS + np.copysign(0.5, found)).astype(np.int32)


def crop(
    images: Sequence[Tensor], boxes: Sequence[Box], size: int, interpolation: str, put: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the boxes of images uint8 `(3, H, W)`, resampled to uint8 `(N, size, size, 3)`.

    `put` puts a tensor where the images are.
    """

    def there(array: NDArray[np.integer]) -> Tensor:
        return put(torch.from_numpy(np.ascontiguousarray(array)))

    tall = [_is_tall(image, size) for image in images]
    images = [image.mT if turned else image for image, turned in zip(images, tall, strict=True)]
    edges = np.array(
        [(box[1], box[0], box[3], box[2]) if turned else box for box, turned in zip(boxes, tall, strict=True)]
    )
    heights, widths = np.array([image.shape[1:] for image in images]).T
    column, across = weights(edges[:, [0, 2]], widths, size, interpolation)
    line, down = weights(edges[:, [1, 3]], heights, size, interpolation)
    top = line[:, :1]
    needed = int((np.minimum(line[:, -1:] + down.shape[2], heights[:, None]) - top).max())
    lines = np.minimum(top + np.arange(needed), heights[:, None] - 1)
    begins = np.cumsum([0, *(image.numel() for image in images[:-1])])
    planes = begins[:, None] + np.arange(3) * (heights * widths)[:, None]
    rows = there((planes[..., None] + (lines * widths[:, None])[:, None])[..., None])  # `(N, 3, needed, 1)`
    pixels = torch.cat([image.reshape(-1) for image in images])
    columns, right = there(column[:, None, None]), there((widths - 1)[:, None, None, None])
    total = _rounding((len(images), 3, needed, size), pixels.device)
    for number, weight in enumerate(there(across[:, None, None]).unbind(-1)):
        total += pixels[rows + torch.minimum(columns + number, right)] * weight
    wide = (total >> BITS).clamp_(0, 255)
    chosen, total = there((line - top)[:, None, :, None]), _rounding((len(images), 3, size, size), pixels.device)
    for number, weight in enumerate(there(down[:, None, :, None]).unbind(-1)):
        total += wide.gather(2, (chosen + number).clamp_(max=needed - 1).expand_as(total)) * weight
    made = (total >> BITS).clamp_(0, 255).to(torch.uint8)
    return torch.where(there(np.array(tall))[:, None, None, None], made.mT, made).permute(0, 2, 3, 1)


def _is_tall(image: Tensor, size: int) -> bool:
    """Return True if Pillow resamples an image along its columns first, whatever the box: they shrink far more."""
    height, width = image.shape[1:]
    return TALL_FIRST and height > size and height - size > 2 * (width - size)


def _rounding(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.full(shape, 1 << (BITS - 1), dtype=torch.int32, device=device)


@cache
def matches_pillow(device: torch.device, interpolation: str) -> bool:
    """Return True if `crop` gives on a device what Pillow gives for some random images."""
    random, size = np.random.default_rng(0), 24
    images = [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((90, 30), (24, 24), (9, 200), (5, 7))]
    boxes = [(0.0, 0.0, 30.0, 90.0), (3.3, 1.1, 21.7, 20.9), (50.2, 0.4, 199.5, 8.5), (1.0, 0.0, 6.0, 4.0)]
    planes = [torch.from_numpy(image).permute(2, 0, 1).contiguous().to(device) for image in images]
    found = crop(planes, boxes, size, interpolation, lambda tensor: tensor.to(device)).cpu().numpy()
    resampling = Image.Resampling[interpolation.upper()]
    return all(
        np.array_equal(np.asarray(Image.fromarray(image).resize((size, size), resampling, box)), each)
        for image, box, each in zip(images, boxes, found, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Kept:
    """A decoded image on the device, uint8 `(3, H, W)`; see `Uncropped`."""

    planes: Tensor
    extent: Extent
    turn: Image.Transpose | None


@dataclass(frozen=True)
class CroppedImages(DecodedImages):
    """Images that are decoded once, as many as fit on the device, and cropped there in every epoch."""

    images: dict[tuple[int, int], Kept] = field(default_factory=dict)  # by index and reduction of the decode
    sizes: dict[int, Size] = field(default_factory=dict)  # by index
    large: set[tuple[int, int]] = field(default_factory=set)  # of those that the CPU crops

    @cached_property
    def room(self) -> list[int]:
        """Bytes on the device that are left for images."""
        return [self.device.room()]

    @property
    def usable(self) -> bool:
        """True if each epoch sees new views, and the device makes them as Pillow does."""
        views, preprocessing = self.views, self.views.preprocessing
        if not (self.device.crops and views.crop and not views.magnitude and self.epochs > 1) or self.keeps:
            return False
        if preprocessing.crop_mode == "border" or preprocessing.interpolation not in _FILTERS:
            return False
        return matches_pillow(self.device.torch_device, preprocessing.interpolation)

    def pixels(self, batches: Batches, number: int) -> Iterator[Tensor]:
        preprocessing = self.views.preprocessing
        views = {index: random_view(self.views.seed, number, index) for index in set(map(int, chain(*batches)))}

        def key(index: int) -> tuple[int, int]:
            size = self.sizes.get(index)
            return index, 0 if size is None else reduction(size, preprocessing, views[index])

        def decoded(index: int) -> Uncropped | NDArray[np.uint8]:
            if key(index) not in self.large:
                image = decode(self.examples.paths[index], preprocessing, views[index])
                self.sizes[index] = image.size
                if image.pixels.size <= LARGEST * 3 * preprocessing.size**2:
                    return image
                self.large.add(key(index))
            return self.views.decode(self.examples.paths[index], number, index)

        new = [
            [index for index in dict.fromkeys(map(int, batch)) if key(index) not in self.images] for batch in batches
        ]
        images = self.ahead(decoded, new)
        for batch, indices in zip(batches, new, strict=True):
            decodes = zip(indices, images, strict=False)  # those of the batches behind follow
            here = {index: self._put(key(index), image) for index, image in decodes}
            found = [here[index] if index in here else self.images[key(index)] for index in map(int, batch)]
            yield self._cropped(found, [views[index] for index in map(int, batch)])

    def _put(self, key: tuple[int, int], image: Uncropped | NDArray[np.uint8]) -> Kept | Tensor:
        """Return an image on the device, where it is kept if there is room."""
        if isinstance(image, np.ndarray):
            return self.device.put(torch.from_numpy(image))
        planes = self.device.put(torch.from_numpy(image.pixels)).permute(2, 0, 1).contiguous()
        kept = Kept(planes, image.extent, image.turn)
        if planes.numel() <= self.room[0]:
            self.room[0] -= planes.numel()
            self.images[key] = kept
        return kept

    def _cropped(self, images: Sequence[Kept | Tensor], views: Sequence[View]) -> Tensor:
        """Return the views `(N, S, S, 3)` of images, some of which the CPU has cropped."""
        preprocessing, device = self.views.preprocessing, self.device.torch_device
        size = preprocessing.size
        stacked = torch.empty((len(images), size, size, 3), dtype=torch.uint8, device=device)
        kept = [(number, image) for number, image in enumerate(images) if isinstance(image, Kept)]
        for start in range(0, len(kept), TOGETHER):
            some = kept[start : start + TOGETHER]
            boxes = [part(image.extent, preprocessing, views[number]) for number, image in some]
            planes = [image.planes for _, image in some]
            small = crop(planes, boxes, size, preprocessing.interpolation, self.device.put)
            for (_, image), pixels in zip(some, small, strict=True):
                if image.turn is not None:
                    pixels.copy_(_TURNS[image.turn](pixels).clone())
            mirrored = self.device.put(torch.tensor([views[number].mirrored for number, _ in some]))
            small = torch.where(mirrored[:, None, None, None], small.flip(2), small)
            stacked[self.device.put(torch.tensor([number for number, _ in some]))] = small
        for number, image in enumerate(images):
            if isinstance(image, Tensor):
                stacked[number] = image
        return stacked


def decoded_images(*given: Any) -> DecodedImages:
    """Return images that are decoded in every epoch, or cropped on the device if it can; takes what they take."""
    cropped = CroppedImages(*given)
    return cropped if cropped.usable else DecodedImages(*given)
