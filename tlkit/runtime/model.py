"""An exported graph with its metadata, from images to labels and features; without torch."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from tlkit.data.decoding import UnreadableImage
from tlkit.data.preprocessing import Source
from tlkit.errors import ArtifactError, UsageError
from tlkit.evaluation.conformal import Thresholds
from tlkit.graph import metadata
from tlkit.model.bundle import RECORD
from tlkit.model.exports import graph_file
from tlkit.plugin.contract import FEATURES, IMAGES, PROBABILITIES, Progress, Session
from tlkit.plugin.detection import NOVELTY
from tlkit.progress import shown
from tlkit.runtime import config
from tlkit.runtime.devices import AUTO, CPU, AutomaticSession, available
from tlkit.runtime.pipeline import Batch, ImageInput, Parts, iter_images, stream
from tlkit.runtime.session import HeadSession, OnnxSession, check_kernels
from tlkit.util.files import local_path
from tlkit.util.resources import cores

if TYPE_CHECKING:
    from tlkit.evaluation.evaluate import EvaluationResult


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable labels of an image, best first, or the reason why it is unreadable.

    `name` is its path, or "image 3" if it has none.
    """

    name: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    reason: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)  # of the head, by name
    unknown: bool | None = None  # is it of no known class? None if the graph has no detector

    @property
    def label(self) -> str | None:
        """The most probable label; None if the image is unreadable."""
        return self.labels[0] if self.labels else None

    @property
    def probability(self) -> float | None:
        """The probability of `label`; None if the image is unreadable."""
        return self.probabilities[0] if self.probabilities else None

    @property
    def novelty(self) -> float | None:
        """0 for a typical image, above 1 for an unknown one; None if the graph has no detector."""
        return self.scores.get(NOVELTY)

    def to_json(self) -> dict[str, Any]:
        """Return path, labels, probabilities and scores of a readable image as JSON values."""
        best = zip(self.labels, self.probabilities, strict=True)
        answers = [{"label": label, "probability": probability} for label, probability in best]
        facts = {"path": self.name, "predictions": answers, **({"scores": dict(self.scores)} if self.scores else {})}
        return facts if self.unknown is None else {**facts, "unknown": self.unknown}


class Model:
    """An exported graph, ready to predict, embed and evaluate; a context manager that closes it.

    Images are paths, bytes, Pillow images, uint8 arrays `(H, W, 3)`, `(H, W)` or `(N, H, W, 3)`, or an iterable that
    mixes them. A single string or path is one image. All go through the same preprocessing.
    """

    def __init__(self, session: Session, file: Path) -> None:
        if session.input != IMAGES or metadata.PREPROCESSING not in session.metadata:
            raise ArtifactError(
                "not a graph that tlkit exported from images (it has no preprocessing in its metadata)",
                file=file,
                do="give trunk.onnx or model.onnx of: tlkit export run/ --onnx",
            )
        self.preprocessing, self.labels = metadata.read_metadata(session.metadata, file)
        self.novelty_threshold = metadata.novelty_threshold(session.metadata, file)
        self.session = session
        self.file = file

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        graph: str = "model",
        workers: int | None = None,
        head: str | None = None,
        device: str = "cpu",
    ) -> Model:
        """Open a graph, or the `graph` ("model" or "trunk") of a bundle; the arguments are those of `tlkit.load`.

        `device` is "auto" (see `AutomaticSession`), "cpu", "cuda" or "tensorrt"; raises ResourceError if it is
        unavailable or has no kernels for int8.
        """
        device = CPU if device == AUTO and not available() else device
        file = graph_file(local_path(path), graph)
        check_kernels(file, device)
        tuned = config.read(file) if workers is None else None

        def open_on(device: str, images: int = 0) -> OnnxSession:
            if tuned is not None and device == CPU:
                return tuned.open(file)
            threads = cores() if workers is None else workers
            return OnnxSession(file, workers=threads, device=device, images=images)

        session = AutomaticSession(file, open_on) if device == AUTO else open_on(device)
        return cls.from_session(session, file, head=head)

    @classmethod
    def from_session(cls, session: Session, file: Path, *, head: str | None = None) -> Model:
        """Return the model of an open session; `head` names one of several heads. `file` is named in errors."""
        names = metadata.head_names(session.metadata)
        if names and head is None:
            do = f"choose one of them with --head: {', '.join(names)}"
            raise UsageError("it has several heads", file=file, do=do)
        if head is not None:
            if not names:
                raise UsageError("it has one head", file=file, do="leave out --head")
            session = HeadSession(session, head)
        return cls(session, file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({str(self.file)!r}, {len(self.labels)} labels)"

    def close(self) -> None:
        """Close the session."""
        self.session.close()

    @property
    def bundle(self) -> Path | None:
        """The bundle that the graph was exported from, if it still lies in it."""
        digest = self.session.metadata.get(metadata.BUNDLE)
        with suppress(OSError):  # a folder above that may not be read
            for folder in self.file.absolute().parents:
                if (folder / RECORD).is_file():
                    return folder if digest and digest in (folder / RECORD).read_text(errors="replace") else None
        return None

    @property
    def name(self) -> str:
        """The name of its bundle and export, never the place where they lie."""
        root = self.bundle
        if root is None:
            return self.file.name
        return "/".join([root.name or "bundle", *self.file.absolute().relative_to(root).parts[:-1]])

    @property
    def width(self) -> int:
        """Number of features per image, from running a black one."""
        size = self.preprocessing.size
        return int(self.session.run(np.zeros((1, size, size, 3), np.uint8), [FEATURES])[FEATURES].shape[1])

    def predict(
        self, images: ImageInput | Iterable[ImageInput], *, topk: int = 1, coverage: float | None = None
    ) -> list[Prediction]:
        """Return the `topk` most probable labels of each image, at most as many as there are.

        With a `coverage`, such as 0.9, return instead the labels of a set that holds the right one at that rate.
        """
        return list(self.predictions(images, topk=topk, coverage=coverage))

    def predictions(
        self, images: ImageInput | Iterable[ImageInput], *, topk: int = 1, coverage: float | None = None
    ) -> Iterator[Prediction]:
        """Yield the results of `predict` one by one."""
        sets = None if coverage is None else self.thresholds()
        if not isinstance(topk, int) or topk < 1:
            raise UsageError(f"topk must be at least 1, not {topk!r}")
        names = metadata.score_names(self.session.outputs)
        if self.novelty_threshold is not None and NOVELTY not in names:
            what = "it has a threshold of novelty, and no output of that name"
            raise ArtifactError(what, file=self.file, do="export it again")
        for batch in self.stream(_sources(images), [PROBABILITIES, *names]):
            rows = iter(zip(*(batch.arrays.get(name, ()) for name in (PROBABILITIES, *names)), strict=True))
            for image in batch.images:
                if image.reason is not None:
                    yield Prediction(image.name, (), (), image.reason)
                    continue
                row, *values = next(rows)
                best, scores = np.argsort(-row, kind="stable"), dict(zip(names, map(float, values), strict=True))
                chosen = None if sets is None or coverage is None else sets.sets(row[None], coverage)[0]
                best = best[:topk] if chosen is None else best[chosen[best]]
                labels, shares = tuple(self.labels[i] for i in best), tuple(float(row[i]) for i in best)
                unknown = None if self.novelty_threshold is None else scores[NOVELTY] > self.novelty_threshold
                yield Prediction(image.name, labels, shares, None, scores, unknown)

    def check_detector(self) -> None:
        """Raise an ArtifactError if the graph has no detector of unknown images."""
        if self.novelty_threshold is None:
            what = "it has no detector of unknown images"
            raise ArtifactError(what, file=self.file, do="train and export it again with a detector installed")

    def thresholds(self) -> Thresholds:
        """Return the thresholds of sets of labels. Raises ArtifactError if the graph has none."""
        text = self.session.metadata.get(metadata.COVERAGE)
        if text is None:
            overlap = self.session.metadata.get(metadata.ACTIVATION, metadata.SOFTMAX) != metadata.SOFTMAX
            do = "leave out the coverage: its classes may overlap" if overlap else "train and export it again"
            raise ArtifactError("it has no thresholds of sets of labels", file=self.file, do=do)
        return Thresholds.from_json(text, len(self.labels), self.file)

    def embed(self, images: ImageInput | Iterable[ImageInput]) -> NDArray[np.float32]:
        """Return features `(N, width)`, one row per image. Raises `UnreadableImage` for the first one."""
        parts = []
        for batch in self.stream(_sources(images), [FEATURES]):
            for image in batch.images:
                if image.reason is not None:
                    raise UnreadableImage(image.reason, file=image.name)
            parts.append(batch.arrays[FEATURES])
        return np.concatenate(parts) if parts else np.empty((0, self.width), np.float32)

    def evaluate(
        self, source: str | os.PathLike[str], *, split: str | None = None, progress: Progress | None = None
    ) -> EvaluationResult:
        """Return the metrics on a labeled dataset, or on the `split` that `tlkit.evaluate` chooses."""
        from tlkit.evaluation.evaluate import evaluate

        with shown(progress) as bars:
            return evaluate(self, local_path(source), split=split, progress=bars)

    def stream(
        self,
        images: Iterable[Source] | Parts,
        outputs: Sequence[str],
        *,
        hashed: bool = False,
        batch_size: int | None = None,
    ) -> Generator[Batch]:
        """Yield batches of images in order, with the named outputs and, if requested, the hashes of the files.

        `batch_size` is by default that of the session, with the best throughput.
        """
        missing = [name for name in outputs if name not in self.session.outputs]
        if missing:
            raise ArtifactError(
                f"this graph has the outputs {', '.join(self.session.outputs)}, not {missing[0]}",
                file=self.file,
                do="use model.onnx",
            )
        batches = stream(self.session, self.preprocessing, images, outputs, hashed=hashed, batch_size=batch_size)
        for batch in batches:
            probabilities = batch.arrays.get(PROBABILITIES)
            if probabilities is not None and probabilities.shape[1] != len(self.labels):
                what = f"it has {probabilities.shape[1]} probabilities for {len(self.labels)} labels"
                raise ArtifactError(what, file=self.file, do="export it again")
            yield batch


def _sources(images: ImageInput | Iterable[ImageInput]) -> Iterable[Source]:
    """Return one source per image, counted if the images are."""
    found = iter_images(images)
    return list(found) if isinstance(images, list | tuple) else found
