"""Image → uint8 (S, S, 3): the only preprocessing there is, bit-identical in every verb.

Its parameters are those of `tlkit.plugin.contract.Preprocessing`: the part of the image that `crop_pct` and `crop_mode`
name, resampled in one pass of Pillow's `resize(box=...)`; with crop mode border, the rest of the S x S pixels has the
mean color. Training may ask for another part of the image, a `View`, which is squashed or bordered in the same way, so
that a view differs from the deployed crop only in its part.

Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size as long as the part keeps at least twice the pixels that it is
resampled to; that is several times faster and changes the result by a fraction of a gray level on average.
Everything else is decoded in full: `reducing_gap` would save a tenth of the time of a 9-megapixel PNG.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from tlkit.data.augmentation import Box, View
from tlkit.data.decoding import (
    HEAD,
    UnreadableImage,
    decoding,
    exif_transpose,
    flatten,
    format_of,
    open_image,
    pixels_alone,
    read_file,
)
from tlkit.data.jpeg import Jpeg
from tlkit.data.memory import reserved
from tlkit.errors import UsageError
from tlkit.plugin.contract import Preprocessing

_DRAFT_MARGIN = 2  # a JPEG decoded at reduced scale keeps this many times the pixels that are needed
# These filters decide by which side of a pixel's border a sample falls, so they neither tolerate a reduced decode nor
# commute with a mirror; the others change by rounding only.
_NOT_SMOOTH = ("nearest", "box")
_SHARED = threading.Lock()  # a Pillow image of the caller may be loaded once only, and may be passed twice

Source = Path | bytes | Image.Image | NDArray[np.uint8]
Size = tuple[int, int]  # width, height
Extent = tuple[float, float]
Decoded = tuple[Image.Image, Size, Extent | None]  # an image, its own size, its exact extent if its decode was reduced


def load(source: Source, preprocessing: Preprocessing, *, view: View | None = None) -> NDArray[np.uint8]:
    """Return an image as the network sees it: uint8 `(S, S, 3)`, RGB, C-contiguous, writable.

    `source` is a path, the bytes of a file, a Pillow image, or an array uint8 `(H, W, 3)` or `(H, W)`. A path, its
    bytes and its decoded image give the same array, except that a large JPEG is not decoded at reduced scale if it
    comes as an image. With a `view` it is that part of the image, for training; without one the center crop, which is
    deployed. Thread-safe. Raises `UnreadableImage` for an image that is damaged, truncated, not in one of `FORMATS`, or
    takes more memory than `tlkit.data.memory` allows, and UsageError for an array of another dtype or shape.
    """
    with decoded(source, preprocessing, view) as image:
        return render(image, preprocessing, view)


@contextmanager
def decoded(source: Source, preprocessing: Preprocessing, view: View | None = None) -> Iterator[Decoded]:
    """Yield an image that `load` would crop; inside, too, what `load` raises is raised."""
    if isinstance(source, Path):
        with _named(source), decoded(read_file(source), preprocessing, view) as image:
            yield image
        return
    if isinstance(source, np.ndarray):
        check_array(source)
        source = Image.fromarray(source)
    with decoding(), ExitStack() as memory:
        yield _decode(source, preprocessing, view, memory)


@dataclass(frozen=True, slots=True)
class Uncropped:
    """A decoded image, uint8 `(H, W, 3)`, before it is cropped, and turned after that; its extent in these pixels.

    `size` is (width, height) of the file, more than that of the pixels if the decode was reduced.
    """

    pixels: NDArray[np.uint8]
    size: Size
    extent: Extent
    turn: Image.Transpose | None


def decode(path: Path, preprocessing: Preprocessing, view: View) -> Uncropped:
    """Return what `load` crops to a view; not for filters that pick pixels. Raises what `load` raises."""
    with decoded(path, preprocessing, view) as (image, size, extent):
        turn, flat = exif_transpose(image), flatten(image)
        return Uncropped(np.array(flat.convert("RGB")), size, extent or flat.size, turn)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in an `UnreadableImage`."""
    try:
        yield
    except UnreadableImage as problem:
        raise UnreadableImage(problem.what, file=path) from problem


def decoded_size(data: bytes, preprocessing: Preprocessing) -> tuple[int, int]:
    """Decode an image as `load` does, without cropping or resizing it, to time the steps separately."""
    with decoded(data, preprocessing) as (image, *_):
        return image.size


def check_array(array: NDArray[np.uint8]) -> None:
    """Raise a UsageError for an array that is not an image."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise UsageError(
            f"an array of dtype {array.dtype} and shape {array.shape} is not an image",
            do="give uint8 values in RGB, of shape (H, W, 3), (H, W) or (N, H, W, 3)",
        )


def _decode(source: bytes | Image.Image, preprocessing: Preprocessing, view: View | None, memory: ExitStack) -> Decoded:
    """Return the image with its pixels, and its extent as `_draft` returns it; `memory` is freed with the image."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so half an image would pass", do="turn it off")
    if isinstance(source, Image.Image):
        memory.enter_context(reserved(source, source.size))
        with _SHARED:
            source.load()
        return source, source.size, None
    jpeg = Jpeg(source) if format_of(source[:HEAD]) == "JPEG" else None
    try:
        image = open_image(source if jpeg is None else jpeg.complete())
        size = image.size
        extent = _draft(image, preprocessing, view)
        memory.enter_context(reserved(image, size))
        image.load()
    except (OSError, SyntaxError, ValueError):
        pixels = pixels_alone(source)
        if pixels is None:
            raise
        memory.close()
        return _decode(pixels, preprocessing, view, memory)
    if jpeg is not None and jpeg.may_be_cut(image):
        again = open_image(jpeg.extended())
        _draft(again, preprocessing, view)
        if jpeg.is_cut(image, again):
            raise UnreadableImage("is cut: its last rows are missing")
    return image, size, extent


def render(found: Decoded, preprocessing: Preprocessing, view: View | None = None) -> NDArray[np.uint8]:
    """Return what `load` returns of a decoded image."""
    image, _, extent = found
    turn = exif_transpose(image)  # after loading, because PNG may keep its EXIF behind the pixels
    flat = flatten(image)
    if turn is not None and preprocessing.interpolation in _NOT_SMOOTH:
        flat, turn = flat.transpose(turn), None
    box = crop_box(extent or flat.size, preprocessing, view)
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    small = flat.resize(_resized(box, preprocessing), resampling, box=box)
    if turn is not None:  # the part is centered, so turning the small image is the same, and far cheaper
        small = small.transpose(turn)
    if view is not None and view.mirrored:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rgb = small if small.mode == "RGB" else small.convert("RGB")
    side = preprocessing.size
    if rgb.size == (side, side):
        return np.array(rgb)
    square = Image.new("RGB", (side, side), tuple(round(255 * mean) for mean in preprocessing.mean))
    square.paste(rgb, ((side - rgb.width) // 2, (side - rgb.height) // 2))
    return np.array(square)


def _draft(image: ImageFile.ImageFile, preprocessing: Preprocessing, view: View | None) -> Extent | None:
    """Set a large JPEG to be decoded at reduced scale; return its exact extent there, or None if nothing is reduced.

    The decoded size is rounded up to whole pixels, of which the last may be only partly covered.
    """
    (width, height), scale = image.size, reduction(image.size, preprocessing, view)
    drafted = image.draft(None, (width // scale, height // scale)) if scale > 1 else None
    return None if drafted is None else drafted[1][2:]


def reduction(size: Size, preprocessing: Preprocessing, view: View | None) -> int:
    """Return the divisor, 1, 2, 4 or 8, of the width and height at which a JPEG of a size is decoded for a view."""
    if preprocessing.interpolation in _NOT_SMOOTH:
        return 1
    left, top, right, bottom = box = crop_box(size, preprocessing, view)
    columns, rows = _resized(box, preprocessing)
    spare = min((right - left) / columns, (bottom - top) / rows) / _DRAFT_MARGIN
    return next((scale for scale in (8, 4, 2) if spare >= scale), 1)


def crop_box(extent: Extent, preprocessing: Preprocessing, view: View | None) -> Box:
    """Return the part of the image that is resampled: that of the view, or the centered part that is deployed.

    Unless the image is cropped to a square, a view is taken from the image squashed to one: its ratio is then relative
    to the image's own, and no view lies in the border.
    """
    width, height = extent
    side = (min if preprocessing.crop_mode == "center" else max)(extent)
    if view is not None:
        if preprocessing.crop_mode == "center":
            return view.box(extent)
        left, top, right, bottom = (each / side for each in view.box((side, side)))
        return left * width, top * height, right * width, bottom * height
    sides = extent if preprocessing.crop_mode == "squash" else (side, side)
    wide, high = (
        min(whole, max(1.0, preprocessing.crop_pct * each)) for whole, each in zip(extent, sides, strict=True)
    )
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def _resized(box: Box, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the width and height in pixels that the part of an image becomes; with a border its ratio is kept."""
    sides = (box[2] - box[0], box[3] - box[1]) if preprocessing.crop_mode == "border" else (1, 1)
    width, height = (max(1, round(preprocessing.size * side / max(sides))) for side in sides)
    return width, height
