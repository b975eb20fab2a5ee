"""Replay the golden images of a bundle, from bytes to logits, on its exports."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.data.decoding import UnreadableImage
from tlkit.data.preprocessing import load
from tlkit.errors import ArtifactError, UsageError
from tlkit.graph import metadata
from tlkit.model import exports
from tlkit.model.bundle import Bundle, Tensors
from tlkit.model.exports import Export, Exports
from tlkit.plugin.contract import FEATURES, IMAGES, Preprocessing, Session
from tlkit.runtime.session import OnnxSession
from tlkit.verification.parity import HEAD_ERROR, REPLAYS, TOLERANCES, HeadOf, Verdict, compare, head_of


@dataclass(frozen=True, slots=True)
class Replay:
    """Golden images replayed on the graphs of one export.

    `changed_images` names the images whose pixels differ, `problems` other facts that are not the bundle's (labels,
    preprocessing), `verdicts` has one for each graph. `head_from` is the origin of the head: bundle or export.
    """

    images: int
    changed_images: tuple[str, ...]
    problems: tuple[str, ...]
    verdicts: dict[str, Verdict]
    head_from: str = exports.FROM_BUNDLE

    @property
    def passed(self) -> bool:
        """The verdict: the same facts, the same pixels, and the same output within the tolerance."""
        return (
            not self.changed_images and not self.problems and all(verdict.passed for verdict in self.verdicts.values())
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "images": self.images,
            "pixels_differ": list(self.changed_images),
            "problems": list(self.problems),
            exports.HEAD_FROM: self.head_from,
            "graphs": {name: verdict.to_json() for name, verdict in self.verdicts.items()},
        }

    def lines(self, name: str) -> Iterator[str]:
        """Yield the verdicts for people; `name` is that of the export or file."""
        wrong = f"pixels differ for {', '.join(self.changed_images)}" if self.changed_images else "pixels identical"
        yield f"{name}: {self.images} golden images, {wrong}"
        if self.head_from != exports.FROM_BUNDLE:
            yield "  its head was refitted at export"
        yield from (f"  {problem}" for problem in self.problems)
        for graph, verdict in self.verdicts.items():
            yield f"  {graph}: {'same' if verdict.passed else 'DIFFERS'} ({verdict.summary()})"


def replay(bundle: Bundle, export: Export, open_graph: Callable[[Export, str], Session] | None = None) -> Replay:
    """Compare every graph of an export with the golden images; `open_graph` opens one, unless told as ONNX."""
    _check_golden(bundle)
    open_graph = open_graph or (lambda export, graph: OnnxSession(export.file(graph)))
    files = {name: export.file(name) for name in exports.GRAPHS}  # all are checked before one is opened
    graphs = {name: (file, open_graph(export, name)) for name, file in files.items()}
    return _replay(bundle, graphs, export.precision, export.expected(), export.head_from, None)


def replay_file(bundle: Bundle, session: Session, file: Path, target: str = exports.TARGET) -> Replay:
    """Compare one graph, wherever it lies now, with the golden images of the bundle that it is said to come from.

    Below fp32 it must give what the bundle's own graph of that precision gave when it was exported, if that is there.
    The `target` built it.
    """
    _check_golden(bundle)
    says = session.metadata
    precision = says.get(metadata.PRECISION, exports.PRECISION)
    if precision not in TOLERANCES:
        raise ArtifactError(f"its metadata name the precision {precision!r}, which does not exist", file=file)
    found = Exports.of(bundle)
    plain = precision if target == exports.TARGET else exports.plain(precision)
    own = found.get(target, plain) if (target, plain) in found.names() else None
    kept = None if own is None else own.expected()
    if kept is None and says.get(metadata.HEAD_FROM) == exports.FROM_EXPORT:
        place = bundle.root / target / plain
        what = f"its head was refitted at export, and {place}, which has its output, is not there"
        raise ArtifactError(what, file=file, do="copy that as well, or export it again")
    head_from = exports.FROM_BUNDLE if own is None else own.head_from
    head = None
    if own is not None and precision != exports.PRECISION and (exports.TARGET, precision) in found.names():
        head = head_of(OnnxSession(found.get(precision=precision).file("head")))
    return _replay(bundle, {file.name: (file, session)}, precision, kept, head_from, head)


def _check_golden(bundle: Bundle) -> None:
    if not bundle.record.golden:
        raise UsageError(
            "it keeps no golden images to replay", file=bundle.root, do="train without --golden 0, or use: tlkit eval"
        )


def _replay(
    bundle: Bundle,
    graphs: Mapping[str, tuple[Path, Session]],
    precision: str,
    kept: Tensors | None,
    head_from: str,
    head: HeadOf | None,
) -> Replay:
    """Compare opened graphs; `kept` is the output at export, with a stricter tolerance than that of the training.

    `head` is a model's, where its graph is not among the `graphs`.
    """
    expected = bundle.expected() if kept is None else kept
    tolerance = TOLERANCES[precision] if kept is None else REPLAYS[precision]
    differing: dict[str, None] = {}
    problems: list[str] = []
    verdicts = {}
    for name, (file, session) in graphs.items():
        preprocessing, labels = metadata.read_metadata(session.metadata, file)
        problems += (f"{name}: {problem}" for problem in _problems(bundle, session.metadata, preprocessing, labels))
        if session.metadata.get(metadata.HEAD_FROM, exports.FROM_BUNDLE) != head_from:
            problems.append(f"{name}: its head is not the one from the {head_from}, which the manifest names")
        if session.input == IMAGES:
            inputs, wrong = _pixels(bundle, preprocessing)
            differing |= dict.fromkeys(wrong)
            verdicts[name] = compare(
                expected, session, inputs, tolerance=tolerance, head=head, activation=bundle.record.activation
            )
        else:
            strict = replace(tolerance, error=min(tolerance.error, HEAD_ERROR))
            verdicts[name] = compare(expected, session, expected[FEATURES], tolerance=strict)
            if verdicts[name].passed and precision != exports.PRECISION:
                head = head_of(session)
    return Replay(len(bundle.record.golden), tuple(differing), tuple(problems), verdicts, head_from)


def _problems(
    bundle: Bundle, says: Mapping[str, str], preprocessing: Preprocessing, labels: tuple[str, ...]
) -> Iterator[str]:
    """Yield the facts in a graph's metadata that are not the bundle's."""
    record = bundle.record
    if says.get(metadata.BUNDLE) != bundle.digest:
        yield "its metadata name another bundle"
    if labels != record.labels:
        wrong = [f"{a!r} for {b!r}" for a, b in zip(labels, record.labels, strict=False) if a != b]
        yield f"its labels differ: {', '.join(wrong[:3]) or f'{len(labels)} of {len(record.labels)}'}"
    if (activation := says.get(metadata.ACTIVATION, metadata.SOFTMAX)) != record.activation:
        yield f"its activation is {activation}, not {record.activation}"
    if (threshold := metadata.novelty_threshold(says)) != record.novelty.get("threshold"):
        yield f"its threshold of novelty is {threshold}, not {record.novelty.get('threshold')}"
    if says.get(metadata.COVERAGE, "") != record.coverage.get("thresholds", ""):
        yield "its thresholds of sets of labels are not the bundle's"
    theirs, ours = asdict(preprocessing), asdict(record.preprocessing)
    for fact in (fact for fact in ours if theirs[fact] != ours[fact]):
        yield f"its preprocessing differs: {fact} {theirs[fact]}, not {ours[fact]}"


def _pixels(bundle: Bundle, preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the golden images with a graph's own preprocessing, and the names of those whose pixels differ."""
    images, differing = [], []
    for golden, content in zip(bundle.record.golden, bundle.golden_bytes(), strict=True):
        try:
            image = load(content, preprocessing)
        except UnreadableImage:
            image = np.zeros((preprocessing.size, preprocessing.size, 3), np.uint8)
        if hashlib.sha256(image.tobytes()).hexdigest() != golden.array_sha256:
            differing.append(golden.name)
        images.append(image)
    return np.stack(images), differing
