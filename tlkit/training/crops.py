"""Random crops of images that stay on a GPU, decoded once, bit for bit as Pillow makes them.

Pillow resamples with integers (libImaging/Resample.c): each pixel is a sum of neighbors with weights of 22 bits, first
along the rows, then along the columns, rounded after each; from Pillow 13 on, tall images first along the columns. So
any device gives the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tlkit.data.augmentation import Box, View, random_view
from tlkit.data.preprocessing import Extent, Uncropped, crop_box, decode, reduction
from tlkit.data.resampling import BITS, is_tall
from tlkit.plugin.contract import Preprocessing
from tlkit.training.device import Device

if TYPE_CHECKING:
    from tlkit.training.inputs import Batches, DecodedImages

TOGETHER = 2**24  # pixels that are taken from images at once, with an address of 8 bytes each
LARGEST = 32  # times the pixels of a crop: images with more are cropped on the CPU

Kept = tuple[Tensor, Extent, Image.Transpose | None]  # uint8 `(3, H, W)` on the device; see `Uncropped`
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


def _triangle(x: Tensor) -> Tensor:
    return torch.where(x < 1, 1 - x, 0.0)


def _cubic(x: Tensor) -> Tensor:
    return torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, torch.where(x < 2, (((x - 5) * x + 8) * x - 4) * -0.5, 0.0))


_FILTERS = {"bilinear": (1.0, _triangle), "bicubic": (2.0, _cubic)}  # width on one side, weight at a distance


def _weights(
    start: Tensor, scale: Tensor, lengths: Tensor, taps: int, size: int, interpolation: str
) -> tuple[Tensor, Tensor]:
    """Return the first neighbor of each of `size` pixels `(N, size)`, and the weights of all `(N, size, taps)`.

    On one axis the boxes begin at `start`, a pixel is `scale` pixels of the image, and that has so many; all `(N, 1)`.
    In this order the operations, all in double precision, are those of Pillow.
    """
    width, weigh = _FILTERS[interpolation]
    stretch = scale.clamp(min=1)
    center = start + (torch.arange(size, device=start.device) + 0.5) * scale
    first = (center - width * stretch + 0.5).long().clamp_(min=0)
    last = torch.minimum((center + width * stretch + 0.5).long(), lengths)
    neighbors = first[..., None] + torch.arange(taps, device=start.device)
    distance = ((neighbors - center[..., None] + 0.5) * (1 / stretch)[..., None]).abs()
    found = torch.where(neighbors < last[..., None], weigh(distance), 0.0)
    total = torch.zeros_like(center)
    for weight in found.unbind(-1):
        total = total + weight
    found = found / total[..., None]
    return first, (found * 2**BITS + torch.copysign(torch.full_like(found, 0.5), found)).int()


def crop(
    images: Sequence[Tensor], boxes: Sequence[Box], size: int, interpolation: str, put: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the boxes of images uint8 `(3, H, W)`, resampled to uint8 `(N, size, size, 3)`.

    `put` puts a tensor where the images are.
    """
    tall = [is_tall((image.shape[2], image.shape[1]), size) for image in images]
    images = [image.mT if turned else image for image, turned in zip(images, tall, strict=True)]
    given = [(box[1], box[0], box[3], box[2]) if turned else box for box, turned in zip(boxes, tall, strict=True)]
    ends, lengths = np.array(given, np.float32), np.array([(image.shape[2], image.shape[1]) for image in images])
    start, scale = ends[:, :2].astype(np.float64), (ends[:, 2:] - ends[:, :2]).astype(np.float64) / size
    reach = _FILTERS[interpolation][0] * np.maximum(scale, 1.0)
    (across, down), planes = np.ceil(2 * reach.max(0)).astype(int), [image.numel() // 3 for image in images]
    needed = int(np.minimum(np.ceil((size - 1) * scale + 2 * reach) + 1, lengths)[:, 1].max())  # rows
    starts, scales = (put(torch.from_numpy(each)).T[..., None] for each in (start, scale))
    widths, heights = put(torch.from_numpy(lengths)).T[..., None]
    column, horizontal = _weights(starts[0], scales[0], widths, across, size, interpolation)
    line, vertical = _weights(starts[1], scales[1], heights, down, size, interpolation)
    pixels = torch.cat([image.reshape(-1) for image in images])
    begins = put(
        torch.from_numpy(np.cumsum([0, *(3 * each for each in planes[:-1])])[:, None] + np.outer(planes, range(3)))
    )
    lines = torch.minimum(line[:, :1] + torch.arange(needed, device=pixels.device), heights - 1) * widths
    rows = (begins[..., None] + lines[:, None])[..., None]  # `(N, 3, needed, 1)`
    total = _rounding((len(images), 3, needed, size), pixels.device)
    columns = torch.minimum(column[..., None] + torch.arange(across, device=pixels.device), widths[..., None] - 1)
    for chosen, weight in zip(*(each[:, None, None].unbind(-1) for each in (columns, horizontal)), strict=True):
        total += pixels[rows + chosen] * weight
    wide, total = (total >> BITS).clamp_(0, 255), _rounding((len(images), 3, size, size), pixels.device)
    below = ((line - line[:, :1])[..., None] + torch.arange(down, device=pixels.device)).clamp_(max=needed - 1)
    for chosen, weight in zip(*(each[:, None, :, None].unbind(-1) for each in (below, vertical)), strict=True):
        total += wide.gather(2, chosen.expand_as(total)) * weight
    made = (total >> BITS).clamp_(0, 255).to(torch.uint8)
    return torch.where(put(torch.tensor(tall))[:, None, None, None], made.mT, made).permute(0, 2, 3, 1)


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


def usable(images: DecodedImages) -> bool:
    """Return True if each epoch sees new views, and the device makes them as Pillow does."""
    views, preprocessing = images.views, images.views.preprocessing
    if not (images.device.crops and views.crop and not views.magnitude and images.epochs > 1) or images.keeps:
        return False
    if preprocessing.crop_mode == "border" or preprocessing.interpolation not in _FILTERS:
        return False
    return matches_pillow(images.device.torch_device, preprocessing.interpolation)


def pixels(images: DecodedImages, batches: Batches, number: int) -> Iterator[Tensor]:
    """Yield what `DecodedImages.pixels` yields, cropped on the device from images that are kept there if they fit."""
    preprocessing, paths = images.views.preprocessing, images.examples.paths
    views = {index: random_view(images.views.seed, number, index) for index in set(map(int, chain(*batches)))}

    def key(index: int) -> tuple[int, int]:
        size = images.sizes.get(index)
        return index, 0 if size is None else reduction(size, preprocessing, views[index])

    def decoded(index: int) -> Uncropped | NDArray[np.uint8]:
        if key(index) not in images.uncropped or images.uncropped[key(index)]:
            image = decode(paths[index], preprocessing, views[index])
            images.sizes[index] = image.size
            if image.pixels.size <= LARGEST * 3 * preprocessing.size**2:
                return image
            images.uncropped[key(index)] = None  # too large
        return images.views.decode(paths[index], number, index)

    def put(index: int, image: Uncropped | NDArray[np.uint8]) -> Kept | Tensor:
        if isinstance(image, np.ndarray):
            return images.device.put(torch.from_numpy(image))
        planes = images.device.put(torch.from_numpy(image.pixels)).permute(2, 0, 1).contiguous()
        kept = planes, image.extent, image.turn
        if planes.numel() <= images.room[0]:
            images.room[0] -= planes.numel()
            images.uncropped[key(index)] = kept
        return kept

    new = [
        [each for each in dict.fromkeys(map(int, batch)) if not images.uncropped.get(key(each))] for batch in batches
    ]
    waiting = images.ahead(decoded, new)
    for batch, indices in zip(batches, new, strict=True):
        here = {index: put(index, next(waiting)) for index in indices}
        found = [
            (here[index] if index in here else images.uncropped[key(index)], views[index]) for index in map(int, batch)
        ]
        yield _cropped(found, preprocessing, images.device)


def _cropped(
    images: Sequence[tuple[Kept | Tensor | None, View]], preprocessing: Preprocessing, device: Device
) -> Tensor:
    """Return views of images, uint8 `(N, S, S, 3)`; of tensors the CPU has made them."""
    size = preprocessing.size
    stacked = torch.empty((len(images), size, size, 3), dtype=torch.uint8, device=device.torch_device)
    kept = [(number, image, view) for number, (image, view) in enumerate(images) if isinstance(image, tuple)]
    longest = max((max(planes.shape) for _, (planes, *_), _ in kept), default=1)
    count = max(1, TOGETHER // (3 * size * longest))
    for start in range(0, len(kept), count):
        numbers, some, views = zip(*kept[start : start + count], strict=True)
        planes, extents, turns = zip(*some, strict=True)
        boxes = [crop_box(extent, preprocessing, view) for extent, view in zip(extents, views, strict=True)]
        small = crop(planes, boxes, size, preprocessing.interpolation, device.put)
        for index, turn in enumerate(turns):
            if turn is not None:
                small[index] = _TURNS[turn](small[index]).clone()
        mirrored = device.put(torch.tensor([view.mirrored for view in views]))
        small = torch.where(mirrored[:, None, None, None], small.flip(2), small)
        stacked[device.put(torch.tensor(numbers))] = small
    for number, (image, _) in enumerate(images):
        if isinstance(image, Tensor):
            stacked[number] = image
    return stacked
