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
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tlkit.data.augmentation import Box, View, random_view
from tlkit.data.preprocessing import Extent, Uncropped, decode, part, reduction
from tlkit.plugin.contract import Preprocessing
from tlkit.training.device import Device

if TYPE_CHECKING:
    from tlkit.training.inputs import Batches, DecodedImages

BITS = 22  # of a weight's fraction
TALL_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
TOGETHER = 16  # images that are resampled at once, which bounds the memory
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
    for start in range(0, len(kept), TOGETHER):
        numbers, some, views = zip(*kept[start : start + TOGETHER], strict=True)
        planes, extents, turns = zip(*some, strict=True)
        boxes = [part(extent, preprocessing, view) for extent, view in zip(extents, views, strict=True)]
        small = crop(planes, boxes, size, preprocessing.interpolation, device.put)
        for turn, each in zip(turns, small, strict=True):
            if turn is not None:
                each.copy_(_TURNS[turn](each).clone())
        mirrored = device.put(torch.tensor([view.mirrored for view in views]))
        small = torch.where(mirrored[:, None, None, None], small.flip(2), small)
        stacked[device.put(torch.tensor(numbers))] = small
    for number, (image, _) in enumerate(images):
        if isinstance(image, Tensor):
            stacked[number] = image
    return stacked
