"""Stream images through a session, in order, with decoding and inference overlapped and memory bounded."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkit.data.decoders import PROBED, Decoders, Waits
from tlkit.data.decoding import UnreadableImage, read_file
from tlkit.data.preprocessing import Source, check_array, load
from tlkit.data.resampling import Layout, is_known, layout, pack
from tlkit.errors import TlkitError, UsageError
from tlkit.plugin.contract import Preprocessing, Session
from tlkit.runtime.devices import CPU, AutomaticSession
from tlkit.runtime.providers import CALLS
from tlkit.runtime.resizing import FROM
from tlkit.runtime.session import OnnxSession
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
class Parts:
    """Images of any storage in parts that no batch crosses, listed as they are needed; `count` is that of all."""

    parts: Iterable[Iterable[StoredImage]]
    count: int


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


@dataclass(slots=True)
class _Pace:
    """The number of images that are done since the first batch was, and the time of that."""

    images: int = 0
    began: float = 0.0

    def add(self, images: int) -> None:
        if self.began:
            self.images += images
        self.began = self.began or time.perf_counter()

    def rate(self) -> float:
        """Return the images per second."""
        return self.images / max(time.perf_counter() - self.began, 1e-6)


Chunk = tuple[tuple[int, "Source | StoredImage"], ...]  # numbers of images, and the images
Decoded = tuple[tuple[ImageRecord, ...], NDArray[np.uint8]]  # `(N, S, S, 3)` of the readable ones
Decode = Callable[[Chunk], AbstractContextManager[Decoded]]
Load = Callable[[Source, Preprocessing], NDArray[np.uint8]]


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
    images: Iterable[Source] | Parts,
    outputs: Sequence[str] | None = None,
    *,
    hashed: bool = False,
    batch_size: int | None = None,
) -> Iterator[Batch]:
    """Yield batches with the outputs of a session for images, in order.

    Each worker decodes a batch, or has a process decode it where that is faster, and runs it. If the session gains
    nothing from concurrent calls, they are serialized and only the decoding overlaps. A GPU may crop and resize.
    """
    count = images.count if isinstance(images, Parts) else len(images) if isinstance(images, Sequence) else 0
    with ExitStack() as opened:
        tell: Callable[[int], object] | None = None
        if isinstance(session, AutomaticSession) and count:
            tell = opened.enter_context(session.running(count))
        lock = nullcontext() if session.workers > 1 else threading.Lock()
        workers, size = max(session.workers, cores()), batch_size or session.batch_size

        def work(decode: Decode, chunk: Chunk) -> Batch:
            with decode(chunk) as (records, batch):
                if not len(batch):
                    return Batch(records, {})
                with lock:
                    results = session.run(batch, outputs)
            return _finite(records, results)

        there, resizes, pace = _on_gpu(session), None, _Pace()
        if there is not None:
            resizes = partial(_resizes, session, layout(preprocessing), pace) if is_known(preprocessing) else None
            many = preprocessing if count >= FROM and resizes is not None else None
            warming = threading.Thread(target=_warm_up, args=(there, min(size, count or size), many))
            warming.start()
            opened.callback(warming.join)
        decoding = _decoding(preprocessing, images, count, hashed, workers, size, resizes)
        for decode, some, threads in opened.enter_context(closing(decoding)):
            for batch in prefetch(partial(work, decode), some, workers=threads, ahead=2 * threads):
                yield batch
                pace.add(len(batch.images))
                if tell is not None:
                    tell(len(batch.images))


def _decoding(
    preprocessing: Preprocessing,
    images: Iterable[Source] | Parts,
    count: int,
    hashed: bool,
    workers: int,
    size: int,
    resizes: Callable[[], bool] | None,
) -> Generator[tuple[Decode, Iterator[Chunk], int]]:
    """Yield what decodes some of the images, these images, and the number of threads for it.

    Many files are decoded by processes if threads wait for each other too long, which the first of them tell. Once the
    session `resizes`, if it ever may, images are packed for it.
    """
    parts: Iterable[Iterable[Source | StoredImage]] = images.parts if isinstance(images, Parts) else [images]
    left = chain.from_iterable(chunks(enumerate(part), size) for part in parts)
    probed = -(-max(PROBED, workers * size) // size)
    here = partial(_decoded_here, preprocessing, hashed)
    if count > probed * size and (isinstance(images, Parts) or all(isinstance(each, Path) for each in images)):
        waits, remaining = Waits(workers), count
        if not waits.outlast(remaining):
            yield partial(here, lambda: waits.load), islice(left, probed), workers
            waits.keep()
            remaining -= probed * size
        if waits.outlast(remaining):
            # One runs a batch while a process decodes for the other; rows are large, so fewer wait.
            slots = 2 * workers if resizes is None else workers + 2 * CALLS
            with (
                suppress(OSError),
                closing(Decoders(preprocessing, size, slots, cores(), packed=resizes is not None)) as decoders,
            ):
                yield partial(_decoded_there, decoders, hashed, resizes), left, 2 * workers
    yield partial(here, lambda: pack if resizes is not None and resizes() else load), left, workers


def _on_gpu(session: Session) -> OnnxSession | None:
    opened = session.opened if isinstance(session, AutomaticSession) else session
    return opened if isinstance(opened, OnnxSession) and opened.device != CPU else None


def _resizes(session: Session, its: Layout, pace: _Pace) -> bool:
    """Return True if a session takes rows, and faster than images are done: otherwise the GPU has enough to do."""
    there = _on_gpu(session)
    return there is not None and there.layout == its and pace.rate() < there.resizing_rate


def _warm_up(session: OnnxSession, rows: int, many: Preprocessing | None) -> None:
    """Have the device prepare its kernels while the first images are decoded, and for many images to resize."""
    with suppress(TlkitError):  # which the first call raises as well
        session.warm_up(rows)
        if many is not None:
            session.prepare_resizing(many)


@contextmanager
def _decoded_here(
    preprocessing: Preprocessing, hashed: bool, choose: Callable[[], Load], chunk: Chunk
) -> Iterator[Decoded]:
    load, records, rows, readable = choose(), list[ImageRecord](), np.empty(0, np.uint8), 0
    for index, source in chunk:
        record, array = _prepare(index, source, preprocessing, hashed, load)
        records.append(record)
        if array is not None:
            rows = rows if readable else np.empty((len(chunk), *array.shape), np.uint8)
            rows[readable] = array
            readable += 1
    yield tuple(records), rows[:readable]


@contextmanager
def _decoded_there(
    decoders: Decoders, hashed: bool, resizes: Callable[[], bool] | None, chunk: Chunk
) -> Iterator[Decoded]:
    images = [_read(index, source) for index, source in chunk]
    given = [(each.name, data if isinstance(data, bytes) else None) for each, data in images if not each.reason]
    with decoders.decoded(given, hashed=hashed, packed=resizes is not None and resizes()) as (found, batch):
        facts = iter(found)
        yield tuple(each if each.reason else ImageRecord(each.name, *next(facts)) for each, _ in images), batch


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
    index: int, source: Source | StoredImage, preprocessing: Preprocessing, hashed: bool, load: Load
) -> tuple[ImageRecord, NDArray[np.uint8] | None]:
    """Read a file once, for its pixels and its hash; the array is None if the image is unreadable."""
    (record, content), digest = _read(index, source), ""
    if record.reason:
        return record, None
    try:
        content = read_file(content) if isinstance(content, Path) else content
        if hashed and isinstance(content, bytes):
            digest = hashlib.sha256(content).hexdigest()
        return replace(record, sha256=digest), load(content, preprocessing)
    except UnreadableImage as error:
        return ImageRecord(record.name, digest, error.what), None


def _read(index: int, source: Source | StoredImage) -> tuple[ImageRecord, Source]:
    """Return the name of an image, and its bytes if it is in a storage, or the reason why they can't be read."""
    if isinstance(source, StoredImage):
        try:
            return ImageRecord(source.name), source.read()
        except UnreadableImage as error:
            return ImageRecord(source.name, reason=error.what), b""
    return ImageRecord(str(source) if isinstance(source, Path) else f"image {index}"), source
