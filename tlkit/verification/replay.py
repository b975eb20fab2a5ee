"""Replay the golden images of a bundle, from bytes to logits, on what was exported from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.data.preprocessing import UnreadableImage, load
from tlkit.errors import ArtifactError, UsageError
from tlkit.graph import metadata
from tlkit.model import exports
from tlkit.model.bundle import Bundle, Tensors
from tlkit.plugin.contract import FEATURES, IMAGES, Preprocessing, Session
from tlkit.runtime.session import OnnxSession
from tlkit.verification.parity import HEAD_ERROR, REPLAYS, TOLERANCES, HeadOf, Verdict, compare, head_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Replay:
    """`changed_images` names the golden images whose pixels differ; `verdicts` has one for each graph.

    `problems` says what else a graph has that is not the bundle's: labels, pixel recipe. `head_from` says whether the
    head is the bundle's own or was fitted again at export.
    """

    images: int
    changed_images: tuple[str, ...]
    problems: tuple[str, ...]
    verdicts: dict[str, Verdict]
    head_from: str = exports.FROM_BUNDLE

    @property
    def passed(self) -> bool:
        """The gate: the same facts, the same pixels, and the same values within the tolerance."""
        return (
            not self.changed_images and not self.problems and all(verdict.passed for verdict in self.verdicts.values())
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {
            "passed": self.passed,
            "images": self.images,
            "pixels_differ": list(self.changed_images),
            "problems": list(self.problems),
            exports.HEAD_FROM: self.head_from,
            "graphs": {name: verdict.to_json() for name, verdict in self.verdicts.items()},
        }


def replay(
    bundle: Bundle,
    target: str = exports.TARGET,
    precision: str = exports.PRECISION,
    open_session: Callable[[Path], Session] = OnnxSession,
) -> Replay:
    """Hold every graph that was exported for one target and precision against the golden images.

    `open_session` opens a file of that target.
    """
    _check_golden(bundle)
    graphs = {name: exports.graph_file(bundle.root, name, target, precision) for name in exports.GRAPHS}
    place = bundle.root / target / precision
    return _replay(bundle, graphs, precision, exports.expected(place), exports.head_from(place), None, open_session)


def replay_file(bundle: Bundle, file: Path, open_session: Callable[[Path], Session] = OnnxSession) -> Replay:
    """Hold one graph, wherever it lies now, against the golden images of the bundle that it is said to come from.

    Below fp32 it must give what the bundle's own graph of that precision gave when it was exported, if that is there.
    """
    _check_golden(bundle)
    says = open_session(file).metadata
    precision = says.get(metadata.PRECISION, exports.PRECISION)
    if precision not in TOLERANCES:
        raise ArtifactError(f"it says that its precision is {precision!r}, which is none", file=file)
    place = bundle.root / exports.TARGET / precision
    known = (place / exports.BUILT).exists()
    kept = exports.expected(place) if known else None
    if kept is None and says.get(metadata.HEAD_FROM) == exports.FROM_EXPORT:
        what = f"its head was fitted again at export, and {place}, which says what it gives, is not there"
        raise ArtifactError(what, file=file, do="copy that as well, or export it again")
    head_from = exports.head_from(place) if known else exports.FROM_BUNDLE
    head = None
    if known and precision != exports.PRECISION:
        head = head_of(OnnxSession(exports.graph_file(bundle.root, "head", precision=precision)))
    return _replay(bundle, {file.name: file}, precision, kept, head_from, head, open_session)


def _check_golden(bundle: Bundle) -> None:
    if not bundle.record.golden:
        raise UsageError(
            "it keeps no golden images to replay", file=bundle.root, do="train without --golden 0, or use: tlkit eval"
        )


def _replay(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    precision: str,
    kept: Tensors | None,
    head_from: str,
    head: HeadOf | None,
    open_session: Callable[[Path], Session],
) -> Replay:
    """`kept` is what the golden images gave at export, which is held against more strictly than what was trained.

    `head` is a model's, where its graph is not among the `graphs`.
    """
    expected = bundle.expected() if kept is None else kept
    tolerance = TOLERANCES[precision] if kept is None else REPLAYS[precision]
    differing: dict[str, None] = {}
    problems: list[str] = []
    verdicts = {}
    for name, file in graphs.items():
        session = open_session(file)
        preprocessing, labels = metadata.described(session.metadata, file)
        problems += (f"{name}: {problem}" for problem in _problems(bundle, session.metadata, preprocessing, labels))
        if session.metadata.get(metadata.HEAD_FROM, exports.FROM_BUNDLE) != head_from:
            problems.append(f"{name}: its head is not the one from the {head_from}, which its record speaks of")
        if session.input == IMAGES:
            inputs, wrong = _pixels(bundle, preprocessing)
            differing |= dict.fromkeys(wrong)
            verdicts[name] = compare(expected, session, inputs, tolerance=tolerance, head=head)
        else:
            strict = replace(tolerance, error=min(tolerance.error, HEAD_ERROR))
            verdicts[name] = compare(expected, session, expected[FEATURES], tolerance=strict)
            if verdicts[name].passed and precision != exports.PRECISION:
                head = head_of(session)
    return Replay(len(bundle.record.golden), tuple(differing), tuple(problems), verdicts, head_from)


def _problems(
    bundle: Bundle, says: Mapping[str, str], preprocessing: Preprocessing, labels: tuple[str, ...]
) -> Iterator[str]:
    """What a graph says of itself that its bundle does not."""
    record = bundle.record
    if says.get(metadata.BUNDLE) != bundle.digest:
        yield "it says that it was exported from another bundle"
    if labels != record.labels:
        wrong = [f"{a!r} for {b!r}" for a, b in zip(labels, record.labels, strict=False) if a != b]
        yield f"its labels are others: {', '.join(wrong[:3]) or f'{len(labels)} of {len(record.labels)}'}"
    theirs, ours = asdict(preprocessing), asdict(record.preprocessing)
    for fact in (fact for fact in ours if theirs[fact] != ours[fact]):
        yield f"its pixel recipe is another: {fact} {theirs[fact]}, not {ours[fact]}"


def _pixels(bundle: Bundle, preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], list[str]]:
    """The golden images as `load` gives them here by a graph's own recipe, and the names of those that differ."""
    images, differing = [], []
    for golden, content in zip(bundle.record.golden, bundle.golden_bytes(), strict=True):
        try:
            image = load(content, preprocessing)
        except UnreadableImage:
            image = np.zeros((preprocessing.size, preprocessing.size, 3), np.uint8)
        if hashlib.sha256(image.tobytes()).hexdigest() != golden.pixels_sha256:
            differing.append(golden.name)
        images.append(image)
    return np.stack(images), differing
