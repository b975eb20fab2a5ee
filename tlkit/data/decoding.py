"""Decode image files safely: bytes to a Pillow image in 8-bit gray or RGB.

Choices that the preprocessing parameters leave open:

- EXIF orientation is applied. Transparent pixels are composited on white. Of an animation or a multi-page TIFF the
  first frame is used that is no thumbnail of another. Color profiles are ignored, as in the training of practically
  all published weights.
- 16-bit gray is scaled by its true range: by that of 8 or 12 bits if no value exceeds it. Of 16-bit color Pillow keeps
  the high byte. Images of 32-bit integers or floats are refused: nothing in the file says which value is white.
- A BMP, TIFF or WebP whose end was never written, zeros to its full length, is decoded. Rows of zeros are black in the
  first two, and WebPs of drawings that libwebp writes end in zeros themselves: up to 98 % of a lossless file, 40 % of a
  lossy one (3,069 files measured). Of JPEG and PNG it is refused.
"""

from __future__ import annotations

import errno
import logging
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageFile, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401

from tlkit.errors import DataError, TlkitError
from tlkit.util.files import read_regular

# Every further decoder is attack surface. "JPEG" includes MPO, which phones write as .jpg.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"})
OTHER_SUFFIXES = frozenset({"avif", "heic", "heif", "hif", "jxl", "jp2"})  # of pictures that are not decoded
HEAD = 16  # bytes that tell the format

PNG = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})

_OTHER_FORMATS = {  # by the bytes from the fifth on
    b"ftypavi": "AVIF",
    b"ftyphei": "HEIC",
    b"ftyphev": "HEIC",
    b"ftypmif1": "HEIF",
    b"JXL ": "JPEG XL",
    b"jP  ": "JPEG 2000",
}

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.preinit()  # the other plugins register themselves now, so that none is loaded in the middle of a thread
logging.getLogger("PIL").addHandler(logging.NullHandler())  # without any handler, errors would go to stderr


_decoding = ContextVar("decoding", default=False)  # of each thread


class _IfDecoding(type):
    def __subclasscheck__(cls, category: type) -> bool:
        return _decoding.get()


class _WarningWhileDecoding(Warning, metaclass=_IfDecoding):
    """Matches every warning of a thread that is decoding, and no other.

    Pillow warns of odd metadata, which affects no pixel. `warnings.catch_warnings` can't silence it: it replaces the
    filters of the whole process, and overlapping threads leave them replaced.
    """


warnings.filterwarnings("ignore", category=_WarningWhileDecoding)


class UnreadableImage(DataError):
    """An image that can't be decoded; `.what` is the reason."""


def check_max_bad(rejected: Mapping[str, str], images: int, max_bad: float | None, count: int | None = None) -> None:
    """Raise a DataError if more than the share `max_bad` of the images is unreadable; with None, if any is.

    `rejected` maps names of images to reasons, all of them or the first of a `count`; the error names the first.
    """
    count = len(rejected) if count is None else count
    if count > (max_bad or 0.0) * images:
        name, reason = next(iter(rejected.items()))
        allow = "" if max_bad is None else f", or allow more than {max_bad:.1%} with --max-bad"
        what = f"{count} of {images} images are unreadable, the first because: {reason}"
        raise DataError(what, file=name, do=f"fix or remove them{allow}")


@contextmanager
def decoding() -> Iterator[None]:
    """Silence Pillow's warnings and raise its errors as `UnreadableImage`."""
    _decoding.set(True)
    try:
        yield
    except TlkitError:
        raise
    except MemoryError as error:
        raise UnreadableImage("needs more memory than there is") from error
    except Exception as error:  # on damaged files Pillow raises almost any exception there is
        reason = str(error) or type(error).__name__
        raise UnreadableImage(f"damaged, truncated or of a kind that can't be decoded: {reason}") from error
    finally:
        _decoding.set(False)


def read_file(path: Path) -> bytes:
    """Return the bytes of a regular file. Raises `UnreadableImage`."""
    try:
        return read_regular(path)
    except (OSError, ValueError) as error:  # the latter for a path with a null character
        if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
            what = "no such file"
        elif path.is_dir():
            what = "is a folder, not an image"
        elif error.errno in (errno.EINVAL, errno.ENXIO):
            what = "is not a regular file"
        else:
            what = f"can't be read: {(error.strerror or str(error)).lower()}"
        raise UnreadableImage(what) from error


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Return an image with its header read. `Image.open` would hide the reason of a failure and warn of large ones."""
    name = format_of(data[:HEAD])
    if name is not None:
        try:
            image: ImageFile.ImageFile = Image.OPEN[name][0](BytesIO(data), "")
        except (OSError, SyntaxError, ValueError):
            if (pixels := pixels_alone(data)) is None:
                raise
            return open_image(pixels)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _skip_thumbnails(image)
        return image
    for signature, other in _OTHER_FORMATS.items():
        if data[4:HEAD].startswith(signature):
            raise UnreadableImage(f"is {other}, which is not decoded; save it as JPEG or PNG")
    raise UnreadableImage(f"is not an image ({', '.join(FORMATS)})" if data else "is an empty file")


def format_of(head: bytes) -> str | None:
    """Return the format that the first `HEAD` bytes of a file tell, or None."""
    for name in FORMATS:
        accept = Image.OPEN[name][1]
        if accept is not None and accept(head):
            return name
    return None


def _skip_thumbnails(image: TiffImagePlugin.TiffImageFile) -> None:
    """Go to the first page that is not marked as a reduced copy of another; stay if all are."""
    reduced = [bool(image.tag_v2.get(ExifTags.Base.NewSubfileType, 0) & 1)]
    while reduced[-1] and len(reduced) < image.n_frames:
        image.seek(len(reduced))
        reduced.append(bool(image.tag_v2.get(ExifTags.Base.NewSubfileType, 0) & 1))
    if reduced[-1]:
        image.seek(0)


def pixels_alone(data: bytes) -> bytes | None:
    """Return a PNG without the chunks that change no pixel, such as texts and profiles; None if it is none or as good.

    Pillow refuses a file for a long text, a large profile or a wrong checksum in any chunk.
    """
    if not data.startswith(PNG):
        return None
    pixels = b"".join([PNG, *(chunk for name, chunk in png_chunks(data) if _decides(name, chunk))])
    return None if len(pixels) >= len(data) else pixels


def _decides(name: bytes, chunk: bytes) -> bool:
    """Return whether a chunk has pixels, or is an intact one with the orientation."""
    intact = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
    return name in _PIXEL_CHUNKS or (name == b"eXIf" and intact)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name of each chunk of a PNG, and the chunk with its length, name and checksum."""
    position = len(PNG)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        yield data[position + 4 : position + 8], data[position:end]
        position = end


def exif_transpose(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that brings an image upright, by its EXIF; Pillow applies that of a TIFF on loading."""
    try:
        return _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - broken EXIF costs the orientation, not the image
        return None


def flatten(image: Image.Image) -> Image.Image:
    """Return an image in 8-bit gray ("L") or RGB, composited on white; its pixels may be averaged afterwards."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _flatten_16_bit(image)
    if image.mode in ("I", "F"):
        raise UnreadableImage("holds 32-bit values of unknown range; save it with 8 or 16 bits per channel")
    if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        return image.convert("RGB")  # most programs leave the fourth byte unused, which is not "transparent"
    if image.has_transparency_data:
        # Pillow has no conversion from "La", gray premultiplied by its alpha, to RGBA.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for Adobe's, which are stored inverted and marked as Adobe's.
        return ImageChops.invert(image).convert("RGB")
    return image.convert("RGB")


def _flatten_16_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits by the range that the file declares; Pillow's `convert` would clip at 255."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    values = np.asarray(image)
    declared = (1 << tags.get(ExifTags.Base.BitsPerSample, (16,))[0]) - 1  # TIFF also has 12 bits
    # Cameras of 8, 10 or 12 bits write 16: such a picture would be black.
    highest = next(highest for highest in (255, 4095, declared) if values.max() <= highest or highest == declared)
    levels = ((np.arange(highest + 1) * 255 + highest // 2) // highest).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero; Pillow inverts only up to 8 bits
        levels = levels[::-1]
    if "transparency" in image.info:
        levels[image.info["transparency"]] = 255
    return Image.fromarray(levels[values])


@dataclass(frozen=True, slots=True)
class Header:
    """Header of an image file: format, pixels (not turned), color mode, and the camera by its EXIF."""

    format: str
    width: int
    height: int
    mode: str
    exif: str  # maker and model, "other" for EXIF without them, "none" without EXIF


def header(data: bytes) -> Header:
    """Return the header of an image file. Raises `UnreadableImage`."""
    with decoding():
        image = open_image(data)
        return Header(image.format or "", image.width, image.height, image.mode, _camera(image))


def _camera(image: Image.Image) -> str:
    try:
        exif = image.getexif()
    except Exception:  # noqa: BLE001 - broken EXIF is no EXIF
        return "none"
    maker, model = (str(exif.get(tag, "")).strip("\0 ") for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    return f"{maker} {model}".strip() or ("other" if exif else "none")
