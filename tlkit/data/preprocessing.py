"""File or bytes -> uint8 (S, S, 3): the only preprocessing there is, the same to the bit in every verb.

The recipe is `tlkit.plugin.contract.Pixels`: the centred square of side crop x the shorter side, resampled to
S x S in one pass of Pillow's `resize(box=...)`. Training may ask for another part of the picture, a `View`; what is
left is done in the same way, so that what differs from the deployed pixels is the part alone. What the text of the
recipe leaves open is settled here:

- Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size while the square keeps at least twice the pixels it
  is resampled to; that is several times faster and moves the result by a fraction of a grey level on average.
  Everything else is resampled in full: `reducing_gap` would save a tenth of the time of a 9-megapixel PNG.
- EXIF orientation is applied. Transparent pixels are shown on white. Of an animation or a multi-page TIFF the
  first frame counts. Colour profiles are ignored, as in the training of practically all published weights.
- 16-bit grey is scaled by its true range; of 16-bit colour Pillow keeps the high byte. Pictures of 32-bit
  integers or floats are refused: nothing in the file says which value is white.
"""

from __future__ import annotations

import logging
import threading
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# The plugins enter themselves into `Image.OPEN`. Imported here, none is loaded in the middle of a thread.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from tlkit.data.augmentation import Box, View
from tlkit.errors import DataError, UsageError
from tlkit.plugin.contract import Preprocessing

# Every further decoder is attack surface. "JPEG" includes MPO, which phones write as .jpg.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"})
MAX_PIXELS = 178_956_970  # half a GiB at 24 bits; beyond it Pillow, too, takes a picture for an attack

_DRAFT_MARGIN = 2  # a JPEG decoded at reduced scale keeps this many times the pixels that are asked for
# These filters decide by which side of a pixel's border a sample falls, so they neither forgive a reduced
# decode nor commute with a mirror; the others change by rounding only.
_STEPPED = ("nearest", "box")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

logging.getLogger("PIL").addHandler(logging.NullHandler())  # without any handler, errors would go to stderr


class _Loading(threading.local):
    now = False


_loading = _Loading()


class _IfLoading(type):
    def __subclasscheck__(cls, category: type) -> bool:
        return _loading.now


class _WarningWhileLoading(Warning, metaclass=_IfLoading):
    """Stands for every warning of a thread that is inside `load`, and for no other.

    Pillow warns of odd metadata, which concerns no pixel. `warnings.catch_warnings` is no way to silence it: it
    swaps the filters of the whole process, and threads that overlap leave them swapped.
    """


warnings.filterwarnings("ignore", category=_WarningWhileLoading)


class UnreadableImage(DataError):
    """One picture that can't be used; `.what` is the reason in plain words."""


def load(
    source: Path | bytes, preprocessing: Preprocessing, *, view: View | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """The picture as a network sees it: uint8 `(S, S, 3)`, RGB, C-contiguous, writable.

    With a `view` it is that part of the picture, for training; without one the centred square, which is deployed.
    A path and the bytes of its file give the same array. Safe to call from many threads at once.
    Raises `Rejected` for anything wrong with the picture: unreadable, not one of `FORMATS`, truncated, or of
    more than `max_pixels` pixels by its header.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so half a picture would pass", do="turn it off")
    if isinstance(source, bytes):
        return _load(source, preprocessing, view, max_pixels)
    try:
        return _load(_read(source), preprocessing, view, max_pixels)
    except UnreadableImage as problem:
        raise UnreadableImage(problem.what, file=source) from problem


def decoded(source: bytes, preprocessing: Preprocessing) -> tuple[int, int]:
    """The size of a picture that `load` accepts, decoded as there and taken no further: to time the stages apart."""
    _loading.now = True
    try:
        return _decode(source, preprocessing, None, MAX_PIXELS)[0].size
    finally:
        _loading.now = False


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture's header says: format, pixels (not turned), colour mode, and the camera by its EXIF."""

    format: str
    width: int
    height: int
    mode: str
    exif: str  # maker and model, "other" for EXIF without them, "none" without EXIF


def header(source: bytes) -> Header:
    """The header of a picture's file. Raises `Rejected` as `load` does."""
    _loading.now = True
    try:
        picture = _open(source)
        return Header(picture.format or "", picture.width, picture.height, picture.mode, _camera(picture))
    except UnreadableImage:
        raise
    except Exception as error:  # see `load`
        raise UnreadableImage(f"damaged, truncated or of a kind that can't be decoded: {error}") from error
    finally:
        _loading.now = False


def _camera(picture: Image.Image) -> str:
    try:
        exif = picture.getexif()
    except Exception:  # noqa: BLE001 - broken EXIF is no EXIF
        return "none"
    maker, model = (str(exif.get(tag, "")).strip("\0 ") for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    return f"{maker} {model}".strip() or ("other" if exif else "none")


def _read(path: Path) -> bytes:
    try:
        if path.is_file():
            return path.read_bytes()
        if path.is_dir():
            raise UnreadableImage("is a folder, not a picture")
        # Opening a pipe or a device could wait for ever.
        raise UnreadableImage("is not a regular file" if path.exists() else "no such file")
    except OSError as error:
        raise UnreadableImage(f"can't be read ({error.strerror or error})") from error


def _load(data: bytes, preprocessing: Preprocessing, view: View | None, max_pixels: int) -> NDArray[np.uint8]:
    _loading.now = True
    try:
        return _render(data, preprocessing, view, max_pixels)
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise UnreadableImage("needs more memory than there is") from error
    except Exception as error:  # on damaged files Pillow raises almost any exception there is
        reason = str(error) or type(error).__name__
        raise UnreadableImage(f"damaged, truncated or of a kind that can't be decoded: {reason}") from error
    finally:
        _loading.now = False


def _decode(
    data: bytes, preprocessing: Preprocessing, view: View | None, max_pixels: int
) -> tuple[ImageFile.ImageFile, tuple[float, float] | None]:
    """The picture with its pixels, and what `_draft` says of it."""
    picture = _open(data)
    width, height = picture.size
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels are more than the limit of {max_pixels:,}")
    extent = _draft(picture, preprocessing, view)
    picture.load()
    return picture, extent


def _render(data: bytes, preprocessing: Preprocessing, view: View | None, max_pixels: int) -> NDArray[np.uint8]:
    picture, extent = _decode(data, preprocessing, view, max_pixels)
    turn = _turn(picture)  # after loading, for PNG may keep its EXIF behind the pixels
    flat = _flatten(picture)
    if turn is not None and preprocessing.interpolation in _STEPPED:
        flat, turn = flat.transpose(turn), None
    box = _box(extent or flat.size, preprocessing, view)
    small = flat.resize(
        (preprocessing.size, preprocessing.size), Image.Resampling[preprocessing.interpolation.upper()], box=box
    )
    if turn is not None:  # the square is centred, so turning the small picture is the same, and far cheaper
        small = small.transpose(turn)
    if view is not None and view.mirrored:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(small if small.mode == "RGB" else small.convert("RGB"))


def _open(data: bytes) -> ImageFile.ImageFile:
    """The picture with its header read. `Image.open` would hide the reason of a failure and warn of big ones."""
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:16]):
            return factory(BytesIO(data), "")
    raise UnreadableImage(f"is not a picture ({', '.join(FORMATS)})" if data else "is an empty file")


def _draft(picture: ImageFile.ImageFile, preprocessing: Preprocessing, view: View | None) -> tuple[float, float] | None:
    """Have a large JPEG decoded at reduced scale; its exact extent there, or None where nothing was reduced.

    The decoded size is rounded up to whole pixels, of which the last may be only partly picture.
    """
    if preprocessing.interpolation in _STEPPED:
        return None
    width, height = picture.size
    left, top, right, bottom = _box(picture.size, preprocessing, view)
    spare = min(right - left, bottom - top) / (_DRAFT_MARGIN * preprocessing.size)
    scale = next((scale for scale in (8, 4, 2) if spare >= scale), 1)
    drafted = picture.draft(None, (width // scale, height // scale)) if scale > 1 else None
    return None if drafted is None else drafted[1][2:]


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What brings the picture upright, by its EXIF orientation; Pillow has turned a TIFF on loading it."""
    try:
        return _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - broken EXIF costs the orientation, not the picture
        return None


def _box(extent: tuple[float, float], preprocessing: Preprocessing, view: View | None) -> Box:
    """What is shown: the view, or the centred square of side crop x the shorter side, and never less than a pixel."""
    if view is not None:
        return view.box(extent)
    width, height = extent
    side = max(1.0, preprocessing.crop_pct * min(width, height))
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _flatten(picture: ImageFile.ImageFile) -> Image.Image:
    """The picture in 8-bit grey ("L") or RGB, as it is seen on white; what follows may average its pixels."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        return _flatten_16_bit(picture)
    if picture.mode in ("I", "F"):
        raise UnreadableImage("holds 32-bit values of unknown range; save it with 8 or 16 bits per channel")
    if picture.has_transparency_data:
        # Pillow knows no way from "La", grey multiplied by its alpha, to RGBA.
        seen = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        white = Image.new("RGB", seen.size, "white")
        white.paste(seen, mask=seen)
        return white
    if picture.mode in ("L", "RGB"):
        return picture
    if picture.mode == "CMYK" and picture.format in ("JPEG", "MPO") and "adobe" not in picture.info:
        # Pillow takes every CMYK JPEG for Adobe's, which are stored inverted and marked as Adobe's.
        return ImageChops.invert(picture).convert("RGB")
    return picture.convert("RGB")


def _flatten_16_bit(picture: ImageFile.ImageFile) -> Image.Image:
    """16-bit grey scaled to 8 bits by the range that the file declares; Pillow's `convert` would clip at 255."""
    tags = picture.tag_v2 if isinstance(picture, TiffImagePlugin.TiffImageFile) else {}
    highest = (1 << tags.get(ExifTags.Base.BitsPerSample, (16,))[0]) - 1  # TIFF also knows 12 bits
    shades = ((np.arange(highest + 1) * 255 + highest // 2) // highest).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero, which Pillow heeds up to 8 bits
        shades = shades[::-1]
    if "transparency" in picture.info:
        shades[picture.info["transparency"]] = 255
    return Image.fromarray(shades[np.asarray(picture)])
