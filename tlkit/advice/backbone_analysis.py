"""Analysis of a backbone in one pass over the images: the domain shift, and the evidence of every stage."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tlkit.advice.domain_shift import (
    ActivationMoments,
    ClassifierConfidence,
    DomainShift,
    ShiftPolicy,
    classifier_confidence,
    shift_at,
    unknown,
)
from tlkit.advice.probes import Probe, nearest_mean, ridge
from tlkit.advice.scores import h_score, logme
from tlkit.data.dataset import Sample
from tlkit.graph import trace
from tlkit.graph.moments import moments_graph
from tlkit.model import trunk as trunks
from tlkit.model.batchnorm import pretraining_statistics
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import Backbone, Tick
from tlkit.runtime.feature_cache import environment
from tlkit.runtime.features import Features, extract
from tlkit.training.run_directory import once
from tlkit.util.files import cache_dir
from tlkit.util.resources import cores, processor_kind

Labels = NDArray[np.int64]

TYPICAL_THROUGHPUT = 100.0  # images per second from file to features, if none had to be decoded
MIN_TIMED = 32  # images from which a throughput is measured
MAX_SCORED = 800  # images that LogME and H-score see
MAX_CLASSIFIED = 20_000  # about as many images that the pretrained classifier sees


@dataclass(frozen=True, slots=True)
class StageEvidence:
    """Evidence of one stage: the linear probe, the nearest class mean, and two scores of its features."""

    name: str
    width: int
    probe: Probe
    nearest_mean: Probe
    logme: float
    h_score: float


@dataclass(frozen=True, slots=True)
class BackboneAnalysis:
    """A backbone on the training images: their features of all stages, the domain shift, and the time of the pass."""

    backbone: Backbone
    trunk: Trunk
    features: Features
    shift: DomainShift
    confidence: ClassifierConfidence | None
    seconds: float
    images: int  # decoded in that time; cached ones are not
    stages: tuple[StageEvidence, ...] = ()

    @property
    def throughput(self) -> float | None:
        """Images per second from file to features; None if too few were decoded."""
        return self.images / self.seconds if self.images >= MIN_TIMED else None

    @property
    def seconds_per_image(self) -> float:
        """Seconds of an image from file to features, as measured or as is typical."""
        return 1 / (self.throughput or TYPICAL_THROUGHPUT)

    def to_json(self) -> dict[str, Any]:
        confidence = self.confidence
        return {
            "backbone": self.backbone.name,
            "domain_shift": {**asdict(self.shift), "location": self.shift.location},
            "classifier": confidence
            and {name: getattr(confidence, name) for name in ("max_probability", "entropy", "energy")},
            "stages": [
                {
                    "stage": stage.name,
                    "width": stage.width,
                    "probe": stage.probe.balanced_accuracy,
                    "interval": list(stage.probe.interval),
                    "nearest_mean": stage.nearest_mean.balanced_accuracy,
                    "logme": stage.logme,
                    "h_score": stage.h_score,
                    "shift": self.shift.stages.get(stage.name),
                }
                for stage in self.stages
            ],
        }


def analyze(backbone: Backbone, size: int | None, samples: Sequence[Sample], tick: Tick) -> BackboneAnalysis:
    """Run the images through all stages; their domain shift is not measured yet."""
    trunk = trunks.build(backbone, preprocessing=None if size is None else trunks.resized(backbone, size))
    graph = trace.stage_graph(trace.traceable(trunk, trunk.names[-1]))
    started = time.perf_counter()
    paths = [sample.path for sample in samples]
    features = extract(paths, graph, trunk.preprocessing, trunk.names, None, tick)
    seconds = time.perf_counter() - started
    return BackboneAnalysis(backbone, trunk, features, unknown("it is not measured"), None, seconds, features.decoded)


def read_ahead(analysis: BackboneAnalysis, samples: Sequence[Sample]) -> int:
    """Run other images through all stages, into the cache, and return how many were decoded."""
    trunk, paths = analysis.trunk, [sample.path for sample in samples]
    graph = trace.stage_graph(trace.traceable(trunk, trunk.names[-1]))
    return extract(paths, graph, trunk.preprocessing, trunk.names, None, lambda _more: None).decoded if paths else 0


def with_shift(analysis: BackboneAnalysis, shift: DomainShift, policy: ShiftPolicy) -> BackboneAnalysis:
    """Return the analysis with its domain shift, of which the classifier's confidence tells where nothing else does."""
    trunk, features = analysis.trunk, analysis.features
    rows = np.flatnonzero(features.usable)[:: max(1, features.usable.sum() // MAX_CLASSIFIED)]
    confidence = classifier_confidence(analysis.backbone.classifier(), features.at(trunk.cut)[rows])
    if shift.domain == "unknown" and confidence is not None:
        shift = confidence.shift(policy)
    return replace(analysis, shift=shift, confidence=confidence)


def measure_shift(analysis: BackboneAnalysis, samples: Sequence[Sample], seed: int, policy: ShiftPolicy) -> DomainShift:
    """Run some of the images through a graph that measures their domain shift, cached for the same images and seed."""
    trunk, features, paths = analysis.trunk, analysis.features, [sample.path for sample in samples]
    remembered = pretraining_statistics(trunk)
    if not remembered:
        return ActivationMoments(remembered).shift(seed, policy)
    graph = trace.stage_graph(trace.traceable(trunk, trunk.names[-1]))
    drawn = np.random.default_rng(seed).permutation(len(paths))[: policy.measured(len(paths))]

    def measure() -> dict[str, Any]:
        moments = ActivationMoments(remembered)
        # A graph of its own: observed layers are not fused, so that its features differ in their last bits.
        moments.collect(moments_graph(graph, remembered), trunk.preprocessing, [paths[index] for index in drawn])
        return asdict(moments.shift(seed, policy))

    decides = [graph.stem, environment(), processor_kind(), asdict(trunk.preprocessing), seed]
    key = json.dumps([*decides, [features.sha256[index] for index in drawn]])
    known, _ = once(cache_dir("domain-shifts") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json", measure)
    if known["overall"] is None:
        return DomainShift(**known)
    return shift_at(known["overall"], tuple(known["interval"]), known["stages"], known["images"], policy)


def stage_evidence(
    analysis: BackboneAnalysis, rows: NDArray[np.int64], labels: Labels, classes: int, groups: Labels | None = None
) -> tuple[StageEvidence, ...]:
    """Return the evidence of every stage on the images `rows` `(n,)` with `labels` and `groups` `(n,)`."""

    def evidence(name: str) -> StageEvidence:
        features = analysis.features.at(name)[rows]
        return StageEvidence(
            name=name,
            width=features.shape[1],
            probe=ridge(features, labels, classes, groups),
            nearest_mean=nearest_mean(features, labels, classes, groups),
            logme=logme(features[:MAX_SCORED], labels[:MAX_SCORED], classes),
            h_score=h_score(features[:MAX_SCORED], labels[:MAX_SCORED]),
        )

    # One thread per stage, and one for its products, as in the heads: waiting BLAS threads spin.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores()) as threads:
        deepest_first = list(threads.map(evidence, reversed(analysis.trunk.names)))
    return tuple(reversed(deepest_first))


def stratified(labels: Labels, usable: NDArray[np.bool_], most: int, seed: int) -> NDArray[np.int64]:
    """Return about `most` of the usable rows or fewer, shuffled: the same share of each class, but at least two."""
    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(usable))
    share = min(1.0, most / max(1, len(shuffled)))
    kept = []
    for label in np.unique(labels[usable]):
        own = shuffled[labels[shuffled] == label]
        kept.append(own[: max(2, round(share * len(own)))])
    chosen = np.concatenate(kept) if kept else shuffled
    return np.random.default_rng(seed).permutation(chosen)
