"""A bundle's graphs in fp16 or int8, taken from the ladder and written like those in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from tlkit.deploy import built
from tlkit.deploy.precision.ladder import Candidate, Climbed, Ladder, Rung, Trial
from tlkit.deploy.progress import Progress, silent
from tlkit.deploy.publish import Published, graphs_of, parity_images, publish_graphs
from tlkit.deploy.refit import Fit
from tlkit.deploy.session import OnnxSession
from tlkit.errors import DataError
from tlkit.model.bundle import Bundle
from tlkit.plugin.contract import FEATURES, LOGITS


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
    head = onnx.load_model(built.graph_file(bundle.root, "head"))
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
        candidate, rungs = trial.first(candidates, max_drop)
    climbed = Climbed(rungs, ladder.sensitivity, ladder.calibration, max_drop)
    return _write(bundle, candidate, head, climbed, data), climbed


def _write(
    bundle: Bundle, candidate: Candidate, head: onnx.ModelProto, climbed: Climbed, data: Path | None
) -> Published:
    more = {"ladder": climbed.to_json()}
    images, drawn_from = parity_images(bundle, data)
    if candidate.precision == built.PRECISION:
        place = bundle.root / built.TARGET / built.PRECISION
        built.amend(place, more)
        return Published(place, len(images), drawn_from, {})
    expected = OnnxSession(built.graph_file(bundle.root, "model")).run(images)
    refitted, head_from = candidate.head, built.FROM_BUNDLE
    if refitted is not None:
        head, head_from = refitted.graph(), built.FROM_EXPORT
        expected[LOGITS] = refitted.logits(expected[FEATURES])
    graphs = graphs_of(bundle, candidate.trunk, head, candidate.precision, head_from)
    return publish_graphs(
        bundle, graphs, expected, images, drawn_from, precision=candidate.precision, refitted=refitted, more=more
    )
