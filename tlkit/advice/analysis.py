"""What one pass over the images tells of a backbone: the shift, and for every stage how far its features go."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tlkit.advice import confidence
from tlkit.advice.confidence import Confidence
from tlkit.advice.domain_shift import LEAST, MOST, Moments, Shift, judged
from tlkit.advice.probes import Probe, nearest_mean, ridge
from tlkit.advice.scores import h_score, logme
from tlkit.data.dataset import Sample
from tlkit.graph import trace
from tlkit.graph.moments import moments_graph
from tlkit.model import trunk as trunks
from tlkit.model.batchnorm import norms
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import Backbone, Tick
from tlkit.runtime.features import Features, extract
from tlkit.training.run_directory import once
from tlkit.util.files import cache_dir
from tlkit.util.resources import cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels = NDArray[np.int64]

MOST_PROBED = 2000  # images that the probes see: more move no accuracy by what matters
MOST_SCORED = 800  # images that the scores see


@dataclass(frozen=True, slots=True)
class StageEvidence:
    """One stage: the linear probe, the nearest class mean, and two scores of its features."""

    name: str
    width: int
    probe: Probe
    nearest: Probe
    logme: float
    h_score: float


@dataclass(frozen=True, slots=True)
class Sight:
    """A backbone seen on the images: their features of all stages, the shift, and how fast the pass was."""

    backbone: Backbone
    trunk: Trunk
    features: Features
    shift: Shift
    confidence: Confidence | None
    seconds: float
    images: int  # that the seconds are of; those known from earlier runs take none
    stages: tuple[StageEvidence, ...] = field(default=())

    def only(self, stage: str) -> Sight:
        """With the evidence of one stage alone."""
        return replace(self, stages=tuple(each for each in self.stages if each.name == stage))

    @property
    def speed(self) -> float | None:
        """Images a second from file to features, where enough of them had to be run to tell."""
        return self.images / self.seconds if self.images >= LEAST else None


def look(backbone: Backbone, size: int | None, samples: Sequence[Sample], seed: int, tick: Tick) -> Sight:
    """One pass of the images through all stages, some of them through the graph that tells the shift as well."""
    trunk = trunks.build(backbone, preprocessing=None if size is None else trunks.resized(backbone, size))
    taps = trace.stage_graph(trunk)
    paths = [sample.path for sample in samples]
    started = time.perf_counter()
    features = extract(paths, taps, trunk.preprocessing, trunk.names, None, tick)
    seconds = time.perf_counter() - started
    shift = _shift(trunk, taps, paths, features, seed)
    sure = confidence.measure(backbone.classifier(), features.stage(-1)[features.usable])
    if shift.likeness == "unknown" and sure is not None:
        shift = confidence.as_shift(sure)
    return Sight(backbone, trunk, features, shift, sure, seconds, features.decoded)


def _shift(trunk: Trunk, taps: Path, paths: Sequence[Path], features: Features, seed: int) -> Shift:
    """The shift of a few of the images; known from an earlier run, where the same ones were looked at then."""
    remembered = norms(trunk)
    if not remembered:
        return Moments(remembered).shift(seed)
    drawn = np.random.default_rng(seed).permutation(len(paths))[: min(MOST, max(LEAST, len(paths) // 8))]

    def find_out() -> dict[str, Any]:
        moments = Moments(remembered)
        # A graph of its own, as what is watched is not fused: its features differ in their last bits, and are not kept.
        moments.look(moments_graph(taps, remembered), trunk.preprocessing, [paths[index] for index in drawn])
        return asdict(moments.shift(seed))

    key = json.dumps([taps.stem, asdict(trunk.preprocessing), seed, [features.sha256[index] for index in drawn]])
    known, _ = once(cache_dir("shifts") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json", find_out)
    if known["overall"] is None:
        return Shift(**known)
    return judged(known["overall"], tuple(known["interval"]), known["stages"], known["images"])


def weigh(sight: Sight, rows: NDArray[np.int64], labels: Labels, classes: int) -> tuple[StageEvidence, ...]:
    """The evidence of every stage on the images `rows` `(n,)` with `labels` `(n,)`."""

    def one(index: int) -> StageEvidence:
        features = sight.features.stage(index)[rows]
        few = slice(MOST_SCORED)
        return StageEvidence(
            name=sight.trunk.names[index],
            width=features.shape[1],
            probe=ridge(features, labels, classes),
            nearest=nearest_mean(features, labels, classes),
            logme=logme(features[few], labels[few], classes),
            h_score=h_score(features[few], labels[few]),
        )

    # One thread for each stage, and one for its products, as in the heads: threads of BLAS that wait spin.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores()) as threads:
        deepest_first = list(threads.map(one, reversed(range(len(sight.trunk.names)))))
    return tuple(reversed(deepest_first))


def draw(labels: Labels, usable: NDArray[np.bool_], most: int, seed: int) -> NDArray[np.int64]:
    """At most about `most` of the usable rows, shuffled, the same share of each class but two of it where there are."""
    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(usable))
    share = min(1.0, most / max(1, len(shuffled)))
    kept = []
    for label in np.unique(labels[usable]):
        own = shuffled[labels[shuffled] == label]
        kept.append(own[: max(2, round(share * len(own)))])
    chosen = np.concatenate(kept) if kept else shuffled
    return np.random.default_rng(seed).permutation(chosen)
