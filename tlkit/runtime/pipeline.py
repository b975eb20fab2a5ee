"""Stream images through a session, in order, with decoding and inference overlapped and memory bounded."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkit.data.decoding import UnreadableImage, read_file
from tlkit.data.preprocessing import Source, check_array, load
from tlkit.errors import UsageError
from tlkit.plugin.contract import Preprocessing, Session
from tlkit.util.files import local_path
from tlkit.util.prefetch import chunks, prefetch
from tlkit.util.resources import cores

ImageInput = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class StoredImage:
    """Image of any storage: its name, and what returns its bytes in a worker or raises `UnreadableImage`."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image of a batch: its path, or "image 3" if it has none, and the reason if it is unreadable.

    `sha256` (hex) is that of the file, or empty if it was not requested.
    """

    name: str
    sha256: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images in order; `arrays` holds a row for each readable one."""

    images: tuple[ImageRecord, ...]
    arrays: dict[str, NDArray[np.float32]]

    def readable(self) -> list[ImageRecord]:
        """Return the images that the rows of `arrays` belong to."""
        return [image for image in self.images if image.reason is None]


def iter_images(images: ImageInput | Iterable[ImageInput]) -> Iterator[Source]:
    """Yield one source per image of what a `Model` takes as images. Raises UsageError for anything else."""
    single = isinstance(images, str | os.PathLike | bytes | bytearray | Image.Image | np.ndarray)
    single = single or hasattr(images, "read")  # the lines of an open file are no images
    for image in [images] if single or not isinstance(images, Iterable) else images:
        if isinstance(image, str | os.PathLike):
            yield local_path(image)
        elif isinstance(image, np.ndarray):
            for each in image if image.ndim == 4 else [image]:
                check_array(each)
                yield each
        elif isinstance(image, bytes | Image.Image):
            yield image
        else:
            what = f"{type(image).__name__!r} is not an image"
            raise UsageError(what, do="give paths, bytes, Pillow images or uint8 arrays")


def stream(
    session: Session,
    preprocessing: Preprocessing,
    images: Iterable[Source | StoredImage],
    outputs: Sequence[str] | None = None,
    *,
    hashed: bool = False,
    batch_size: int | None = None,
) -> Iterator[Batch]:
    """Yield batches with the outputs of a session for images, in order.

    Each worker decodes a batch and runs it. If the session gains nothing from concurrent calls (a GPU), its calls are
    serialized and only the decoding overlaps.
    """
    lock = nullcontext() if session.workers > 1 else threading.Lock()

    def work(chunk: tuple[tuple[int, Source | StoredImage], ...]) -> Batch:
        prepared = [_prepare(index, source, preprocessing, hashed) for index, source in chunk]
        arrays = [array for _, array in prepared if array is not None]
        records = tuple(record for record, _ in prepared)
        if not arrays:
            return Batch(records, {})
        batch = np.stack(arrays)
        with lock:
            results = session.run(batch, outputs)
        return _finite(records, results)

    workers = max(session.workers, cores())
    batches = chunks(enumerate(images), batch_size or session.batch_size)
    yield from prefetch(work, batches, workers=workers, ahead=2 * workers)


def _finite(records: tuple[ImageRecord, ...], arrays: dict[str, NDArray[np.float32]]) -> Batch:
    """Return a batch in which an image that makes an output NaN or infinite is rejected; its numbers mean nothing."""
    finite = [np.isfinite(array).reshape(len(array), -1).all(1) for array in arrays.values()]
    good: NDArray[np.bool_] = np.logical_and.reduce(finite) if finite else np.ones(0, bool)
    if good.all():
        return Batch(records, arrays)
    left = iter(good)
    judged = [
        record if record.reason is not None or next(left) else replace(record, reason="makes the network's output NaN")
        for record in records
    ]
    return Batch(tuple(judged), {name: array[good] for name, array in arrays.items()})


def _prepare(
    index: int, source: Source | StoredImage, preprocessing: Preprocessing, hashed: bool
) -> tuple[ImageRecord, NDArray[np.uint8] | None]:
    """Read a file once, for its pixels and its hash; the array is None if the image is unreadable."""
    name = f"image {index}"
    if isinstance(source, Path | StoredImage):
        name = source.name if isinstance(source, StoredImage) else str(source)
    digest = ""
    try:
        content = source.read() if isinstance(source, StoredImage) else source
        content = read_file(content) if isinstance(content, Path) else content
        if hashed and isinstance(content, bytes):
            digest = hashlib.sha256(content).hexdigest()
        return ImageRecord(name, digest), load(content, preprocessing)
    except UnreadableImage as error:
        return ImageRecord(name, digest, error.what), None
