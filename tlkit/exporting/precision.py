"""A bundle's graphs in fp16 or int8, taken from the ladder and written like those in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from tlkit.errors import DataError
from tlkit.exporting.head_refit import Fit
from tlkit.exporting.precision_search import Candidate, Climbed, Ladder, Rung, Trial
from tlkit.exporting.run import Published, graphs_of, publish_graphs
from tlkit.model import exports
from tlkit.model.bundle import Bundle
from tlkit.model.reference_images import parity_images
from tlkit.plugin.contract import FEATURES, LOGITS, Progress, silent
from tlkit.runtime.session import OnnxSession, on_disk
from tlkit.verification.parity import TOLERANCES, Verdict, compare


def publish_precision(
    bundle: Bundle,
    precision: str,
    half: Callable[[], onnx.ModelProto],
    *,
    max_drop: float | None = None,
    fallback: bool = True,
    data: Path | None = None,
    progress: Progress = silent,
    fit: Fit | None = None,
) -> tuple[Published, Climbed]:
    """Write the graphs of `precision`, or with `max_drop` of the first rung from there that loses no more points.

    `half` traces the trunk in half precision, if it comes to that. `fit` fits the head again on the features of every
    int8 trunk that is tried, and the better of the two heads is kept. The fp32 graphs have to be there; where the
    ladder ends at them, only their record is written.
    """
    head = onnx.load_model(exports.graph_file(bundle.root, "head"))
    proof = _Proof(bundle, data)
    ladder = Ladder(bundle, half, data=data, progress=progress)

    def join(chosen: str, trunk: onnx.ModelProto) -> onnx.ModelProto:
        return graphs_of(bundle, trunk, head, chosen)["model"]

    candidates = ladder.candidates(precision, fallback=fallback and max_drop is not None)
    rungs: tuple[Rung, ...] = ()
    try:
        trial = Trial(bundle, join, data=data, progress=progress, fit=fit)
    except DataError:
        if max_drop is not None or data is not None or fit is not None:
            raise
        candidate = next(candidates)  # no budget to keep to; int8 asks for images itself
    else:
        candidate, rungs = trial.first(candidates, max_drop, lambda candidate: proof.of(candidate).passed)
    climbed = Climbed(rungs, ladder.sensitivity, ladder.calibration, max_drop)
    return _write(bundle, candidate, head, climbed, proof), climbed


class _Proof:
    """The images that an export is checked on, and what fp32 gives for them."""

    def __init__(self, bundle: Bundle, data: Path | None) -> None:
        self.images, self.drawn_from = parity_images(bundle, data)
        self.expected = OnnxSession(exports.graph_file(bundle.root, "model")).run(self.images)

    def of(self, candidate: Candidate) -> Verdict:
        """Whether a candidate's trunk still gives the features that were trained."""
        with on_disk(candidate.trunk) as file:
            return compare(self.expected, OnnxSession(file), self.images, tolerance=TOLERANCES[candidate.precision])


def _write(bundle: Bundle, candidate: Candidate, head: onnx.ModelProto, climbed: Climbed, proof: _Proof) -> Published:
    more = {"ladder": climbed.to_json()}
    images, drawn_from, expected = proof.images, proof.drawn_from, proof.expected
    if candidate.precision == exports.PRECISION:
        place = bundle.root / exports.TARGET / exports.PRECISION
        exports.amend(place, more)
        return Published(place, len(images), drawn_from, {})
    refitted, head_from = candidate.head, exports.FROM_BUNDLE
    if refitted is not None:
        head, head_from = refitted.graph(), exports.FROM_EXPORT
        expected = {**expected, LOGITS: refitted.logits(expected[FEATURES])}
    graphs = graphs_of(bundle, candidate.trunk, head, candidate.precision, head_from)
    return publish_graphs(
        bundle, graphs, expected, images, drawn_from, precision=candidate.precision, refitted=refitted, more=more
    )
