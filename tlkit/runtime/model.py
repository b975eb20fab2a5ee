"""The runtime: an exported graph and the facts inside it, from image files to labels and features. Never torch.

One image goes this way: `_prepare` reads and decodes it, `Session.run` gives its arrays, `stream` hands them
on in the order of the files.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tlkit.data.preprocessing import UnreadableImage, load
from tlkit.errors import ArtifactError, DataError, UsageError
from tlkit.graph import metadata
from tlkit.model.exports import graph_file
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, PROBABILITIES, Preprocessing, Session
from tlkit.runtime import config
from tlkit.runtime.heads import OneHead, heads
from tlkit.runtime.session import OnnxSession
from tlkit.util.prefetch import prefetch
from tlkit.util.resources import cores

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Row:
    """A file of a chunk, and why it was rejected, if it was; its SHA-256 (hex) where that was asked for, else ""."""

    file: Path
    sha256: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some files in order; `arrays` has a row for each that was not rejected."""

    rows: tuple[Row, ...]
    arrays: dict[str, NDArray[np.float32]]

    def kept(self) -> list[Row]:
        """The files behind the rows of `arrays`."""
        return [row for row in self.rows if row.reason is None]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable labels of one file, best first, with their probabilities; or the reason why there are none."""

    file: Path
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    reason: str | None = None


def stream(
    session: Session,
    preprocessing: Preprocessing,
    files: Iterable[Path],
    outputs: Sequence[str] | None = None,
    *,
    hashed: bool = False,
) -> Iterator[Chunk]:
    """Run files through a session, in order, decoding and inference overlapped, memory bounded.

    Each worker decodes a chunk and runs it. Where the session gains nothing from calls at the same time (a GPU), the
    workers take turns at it and only their decoding overlaps.
    """
    turn = nullcontext() if session.workers > 1 else threading.Lock()

    def work(chunk: tuple[Path, ...]) -> Chunk:
        prepared = [_prepare(file, preprocessing, hashed) for file in chunk]
        images = [image for _, image in prepared if image is not None]
        rows = tuple(row for row, _ in prepared)
        if not images:
            return Chunk(rows, {})
        batch = np.stack(images)
        with turn:
            return Chunk(rows, session.run(batch, outputs))

    workers = max(session.workers, cores())
    source = iter(files)
    chunks = iter(lambda: tuple(islice(source, session.batch_size)), ())
    yield from prefetch(work, chunks, workers=workers, ahead=2 * workers)


def _prepare(file: Path, preprocessing: Preprocessing, hashed: bool) -> tuple[Row, NDArray[np.uint8] | None]:
    """Read a file once, for its pixels and, where it is asked for, its hash."""
    try:
        if file.exists() and not file.is_file():  # to read a pipe or a device could take for ever
            return Row(file, "", "is a folder" if file.is_dir() else "is not a regular file"), None
        content = file.read_bytes()
    except OSError as error:
        return Row(file, "", f"can't be read: {(error.strerror or str(error)).lower()}"), None
    digest = hashlib.sha256(content).hexdigest() if hashed else ""
    try:
        return Row(file, digest), load(content, preprocessing)
    except UnreadableImage as error:
        return Row(file, digest, error.what), None


class Model:
    """An exported graph: `Model.open("run/onnx/fp32/model.onnx").predict(["a.jpg"])`."""

    def __init__(self, session: Session, file: Path) -> None:
        if session.input != IMAGES or metadata.PREPROCESSING not in session.metadata:
            raise ArtifactError(
                "not a graph that tlkit exported from images (its pixel recipe is not in it)",
                file=file,
                do="give trunk.onnx or model.onnx of: tlkit export run/ --onnx",
            )
        self.preprocessing, self.labels = metadata.described(session.metadata, file)
        self.session = session
        self.file = file

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        graph: str = "model",
        workers: int | None = None,
        head: str | None = None,
        device: str = "cpu",
    ) -> Model:
        """Open a graph, or that of a bundle (`graph` says which: `model` or `trunk`).

        `workers=1` answers one call fastest; the default uses a thread a core, for many files, or what `tlkit bench
        --tune` found to be best for them on a machine like this one. Of a graph with several
        heads, `head` names one. `device` is `cpu`, `cuda` or `tensorrt`; one that can't be used here raises a
        ResourceError.
        """
        file = graph_file(Path(path), graph)
        tuned = config.read(file) if workers is None and device == "cpu" else None
        session: Session = (
            OnnxSession(file, workers=cores() if workers is None else workers, device=device)
            if tuned is None
            else tuned.open(file)
        )
        known = heads(session.metadata)
        if known and head is None:
            do = f"choose one of them with --head: {', '.join(known)}"
            raise UsageError("it has several heads", file=file, do=do)
        if head is not None:
            if not known:
                raise UsageError("it has one head", file=file, do="leave out --head")
            session = OneHead(session, head)
        return cls(session, file)

    def predict(self, files: Sequence[Path | str], *, topk: int = 1) -> list[Prediction]:
        """The `topk` most probable labels of each file."""
        return list(self.predictions(map(Path, files), topk=topk))

    def predictions(self, files: Iterable[Path], *, topk: int = 1) -> Iterator[Prediction]:
        """As `predict`, one by one while the work goes on."""
        for chunk in self.stream(files, [PROBABILITIES]):
            rows = iter(chunk.arrays[PROBABILITIES] if chunk.arrays else ())
            for row in chunk.rows:
                if row.reason is not None:
                    yield Prediction(row.file, (), (), row.reason)
                    continue
                probabilities: NDArray[np.float32] = next(rows)
                best = np.argsort(-probabilities, kind="stable")[:topk]
                yield Prediction(
                    row.file, tuple(self.labels[i] for i in best), tuple(float(probabilities[i]) for i in best)
                )

    def embed(self, files: Sequence[Path | str]) -> NDArray[np.float32]:
        """Features `(N, width)`, row for row; a file that can't be used is an error that names it."""
        parts = []
        for chunk in self.stream(map(Path, files), [FEATURES]):
            for row in chunk.rows:
                if row.reason is not None:
                    raise DataError(row.reason, file=row.file)
            parts.append(chunk.arrays[FEATURES])
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    def stream(self, files: Iterable[Path], outputs: Sequence[str], *, hashed: bool = False) -> Iterator[Chunk]:
        """Chunks of files in order, with the named outputs of the graph, and if asked for with the files' hashes."""
        lacking = [name for name in outputs if name not in self.session.outputs]
        if lacking:
            raise ArtifactError(
                f"this graph gives {', '.join(self.session.outputs)}, not {lacking[0]}",
                file=self.file,
                do="use model.onnx",
            )
        for chunk in stream(self.session, self.preprocessing, files, outputs, hashed=hashed):
            probabilities = chunk.arrays.get(PROBABILITIES)
            if probabilities is not None and probabilities.shape[1] != len(self.labels):
                what = f"it gives {probabilities.shape[1]} probabilities for {len(self.labels)} labels"
                raise ArtifactError(what, file=self.file, do="export it again")
            yield chunk


__all__ = ["FEATURES", "LOGITS", "PROBABILITIES", "Chunk", "Model", "Prediction", "Row", "stream"]
