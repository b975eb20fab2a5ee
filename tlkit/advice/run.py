"""The order of an advice: dataset statistics, backbone analyses, recommendation, trials and audit."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tlkit.advice import html, page
from tlkit.advice.backbone_analysis import (
    BackboneAnalysis,
    analyze,
    measure_shift,
    read_ahead,
    stage_evidence,
    stratified,
    with_shift,
)
from tlkit.advice.dataset_statistics import ImageStatistics, SizePolicy, gather
from tlkit.advice.domain_shift import DomainShift, ShiftPolicy
from tlkit.advice.recommendation import (
    Evidence,
    FineTuningPolicy,
    Recommendation,
    cautious,
    recommend,
    recommend_frozen,
)
from tlkit.advice.selection import HeadEvidence, available, best_backbone, compare_heads
from tlkit.advice.trials import run_trials
from tlkit.audit.run import Audit
from tlkit.audit.run import audit as audit_dataset
from tlkit.data import dataset as datasets
from tlkit.data.dataset import Dataset
from tlkit.data.duplicates import Duplicates, find_duplicates
from tlkit.data.scan import FileCounts
from tlkit.model.cut import blocks_of
from tlkit.plugin.contract import Backbone, Component, Head, Progress, Strategy, silent
from tlkit.plugin.detection import Detector
from tlkit.plugin.options import changed
from tlkit.runtime.features import check_rejected
from tlkit.training.heads import Groups
from tlkit.util.text import quoted

SOON = 500  # images from which heads take longer to compare than one takes to train
AHEAD = 256  # validation images that a training is sure to need, and that are read while heads are compared


@dataclass(frozen=True, slots=True)
class AdvicePolicy:
    """Thresholds of the advice; the defaults were measured, see docs/advice.md."""

    size: SizePolicy = field(default_factory=SizePolicy)
    shift: ShiftPolicy = field(default_factory=ShiftPolicy)
    fine_tuning: FineTuningPolicy = field(default_factory=FineTuningPolicy)
    max_probed: int = 2000  # images that the probes see: more do not change an accuracy by what matters
    max_compared: int = 300  # images that heads are cross-validated on: more would take longer than their features


@dataclass(frozen=True, slots=True)
class AdviceRequest:
    """Components to choose from, the first backbone preferred, and options of the dataset and the training."""

    backbones: Sequence[Backbone]
    heads: Sequence[Head]
    strategies: Sequence[Strategy]
    origin: Callable[[Component], tuple[str, str]]  # distribution and version of the plugin that a component comes from
    val: float = 0.2
    group: str | None = None  # regular expression over names: images with the same match stay together
    max_bad: float = 0.01
    seed: int = 0
    cut: str | None = None  # required by the user
    options: Mapping[str, Any] = field(default_factory=dict)  # other fields of the training's configuration
    policy: AdvicePolicy = field(default_factory=AdvicePolicy)
    detectors: Mapping[Detector, tuple[str, str]] = field(default_factory=dict)  # with their plugins, for what is kept


@dataclass(frozen=True, slots=True, repr=False)
class Advice:
    """Statistics, evidence and recommendation; printed, a page of text, and in a notebook a page with figures.

    `analyses` has the backbones in the order of the request; `labels` are those of the training images.
    """

    source: Path
    dataset: Dataset
    statistics: ImageStatistics
    analyses: Sequence[BackboneAnalysis]
    labels: NDArray[np.int64]
    duplicates: Duplicates
    recommendation: Recommendation
    heads: Sequence[HeadEvidence] = ()
    evidence: Evidence | None = None  # behind the recommendation; None if it is inconclusive
    rejected: Mapping[str, str] = field(default_factory=dict)
    trials: Sequence[Mapping[str, Any]] = ()
    audit: Audit | None = None
    learnable: bool = True  # a training could use the dataset
    decoded: int = 0  # images, of which the features are cached now

    @property
    def skipped(self) -> Mapping[str, str]:
        """Files of the source that are no labeled images: path to reason."""
        return self.dataset.skipped

    @property
    def files(self) -> FileCounts:
        """All files of the source, counted; only images to train on are read."""
        read = len(self.dataset.of("train")) - len(self.rejected)
        others = len(self.dataset.samples) - read - len(self.rejected)
        return FileCounts.of(read, self.rejected, self.skipped, others)

    @property
    def analysis(self) -> BackboneAnalysis:
        """Analysis of the recommended backbone."""
        return next(each for each in self.analyses if each.backbone.name == self.recommendation.backbone)

    @property
    def command(self) -> str:
        """Command that follows the recommendation; asks for advice again if nothing can be trained on the dataset."""
        if not self.learnable:
            return f"tlkit advise {quoted(self.source)}"
        backbone, own = self.analysis.backbone, self.analysis.trunk.preprocessing.size
        settings = [f"--set backbone.{name}={shlex.quote(text)}" for name, text in changed(backbone).items()]
        size = [] if own == backbone.preprocessing.size else [f"--size {own}"]
        words = ["-o run/", *self.recommendation.arguments(), *size, *settings]
        return " ".join(["tlkit train", quoted(self.source), *words])

    def to_json(self) -> dict[str, Any]:
        statistics = self.statistics
        return {
            "source": str(self.source),
            "dataset": {**asdict(statistics), "classes": statistics.classes, "imbalance": statistics.imbalance},
            "backbones": [analysis.to_json() for analysis in self.analyses],
            "heads": [asdict(head) for head in self.heads],
            "trials": [dict(trial) for trial in self.trials],
            "recommendation": self.recommendation.to_json(),
            "duplicates": asdict(self.duplicates),
            "rejected": dict(self.rejected),
            "skipped": dict(self.skipped),
            "files": asdict(self.files),
            **({} if self.audit is None else {"audit": self.audit.to_json()}),
        }

    def __repr__(self) -> str:
        return page.text(self)

    def _repr_html_(self) -> str:
        return html.fragment(self)


def advise(
    source: Path,
    request: AdviceRequest,
    progress: Progress = silent,
    *,
    budget: float | None = None,
    audit: bool = False,
    strict: bool = False,
    learnable: bool = False,
    keep: Callable[[Advice], bool] = lambda _draft: True,
) -> Advice:
    """Analyze the training images through each backbone and recommend a training.

    Validation and test images are not read, except for trials (if there is a `budget` in seconds) and an audit, and
    ahead for a training if the source must be `learnable`. As soon as the best frozen features are known, `keep` is
    called with the advice to take these, and on many images also before heads are compared: where it returns False for
    what the comparison chose, the advice stays without. Raises `DataError` for a source without images or with more
    unreadable ones than allowed; if it must be `learnable`, also for one that nothing can be trained on, and if
    `strict`, for one with the same file in two splits or classes.
    """
    advice = _analyzed(source, request, progress, strict=strict, learnable=learnable)
    dataset, first, policy = advice.dataset, advice.analyses[0], request.policy
    samples, many = dataset.of("train"), min(int(first.features.usable.sum()), policy.max_compared) > SOON
    groups = datasets.groups_of(samples)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(1) as pool:  # limits of two threads undo each other
        ahead = pool.submit(read_ahead, first, dataset.of("val")[:AHEAD] if learnable else ())
        probed = advice if advice.statistics.shortcomings(policy.size) else _probed(advice, request, groups)
        if many and probed.evidence is not None:
            keep(_cut_as_requested(_read(probed, ahead), request.cut))
        shifts = [pool.submit(measure_shift, each, samples, request.seed, policy.shift) for each in advice.analyses]
        advice = _compared(probed, request, groups, progress)
    advice = _read(advice, ahead)
    if not keep(_cut_as_requested(advice, request.cut)):
        advice = replace(advice, evidence=probed.evidence)
    advice = _cut_as_requested(_recommended(advice, request, [each.result() for each in shifts]), request.cut)
    if budget is not None:
        advice = run_trials(advice, request, budget, progress)
    if audit:
        found = audit_dataset(dataset, advice.analysis.trunk, progress, request.seed)
        chosen = advice.recommendation.with_reasons(*(shortcut.warning() for shortcut in found.shortcuts))
        advice = replace(advice, audit=found, recommendation=chosen)
    return advice


def _analyzed(source: Path, request: AdviceRequest, progress: Progress, *, strict: bool, learnable: bool) -> Advice:
    """Return the advice with the features of each backbone, and without evidence: it recommends caution."""
    dataset = datasets.read(source, val=request.val, group=request.group, learnable=learnable)
    duplicates = find_duplicates(dataset)
    for line in (str(dataset), *duplicates.lines()):
        progress(line, 0)
    if strict:
        duplicates.check()
    samples, size = dataset.of("train"), request.options.get("size")
    analyses = [analyze(each, size, samples, progress(each.name, len(samples))) for each in request.backbones]
    counted = (*samples, *dataset.of("val")) if learnable else samples  # those that a training then counts
    features = analyses[0].features
    check_rejected(features, [sample.path for sample in counted], request.max_bad)
    # Equal features are the same image, unless the backbone is blind to what differs.
    seen = [gather(dataset, samples, features.usable, each.features.at(each.trunk.cut)) for each in analyses]
    statistics = max(seen, key=lambda each: each.distinct)
    shortcomings = statistics.shortcomings(request.policy.size)
    return Advice(
        source,
        dataset,
        statistics,
        analyses,
        np.array([sample.label for sample in samples], np.int64),
        duplicates,
        cautious(analyses[0], available(request.heads, request.strategies, dataset.statistics).head, shortcomings),
        rejected={samples[index].name: reason for index, reason in features.rejected.items()},
        learnable=learnable or datasets.is_learnable(source, request.val, request.group),
    )


def _read(advice: Advice, ahead: Future[int]) -> Advice:
    """Return the advice with the number of images decoded, those ahead included."""
    more = 0 if ahead.exception() else ahead.result()
    return replace(advice, decoded=advice.analyses[0].features.decoded + more)


def _probed(advice: Advice, request: AdviceRequest, groups: Groups) -> Advice:
    """Return the advice with the evidence of stages, and frozen features of the best under the default head."""
    dataset, statistics, labels, policy = advice.dataset, advice.statistics, advice.labels, request.policy
    classes = len(dataset.labels)
    rows = stratified(labels, advice.analyses[0].features.usable, policy.max_probed, request.seed)
    known = dataset.without(advice.rejected).statistics
    own = None if groups is None else groups[rows]
    analyses = [
        replace(each, stages=stage_evidence(each, rows, labels[rows], classes, own)) for each in advice.analyses
    ]
    best = best_backbone(analyses)
    if request.cut is not None:
        best = replace(best, stages=tuple(each for each in best.stages if each.name in blocks_of(request.cut)))
    large, val = statistics.is_large(policy.size), len(dataset.of("val"))
    return _frozen(replace(advice, analyses=analyses), Evidence(statistics, large, best, (), known, val), request)


def _compared(advice: Advice, request: AdviceRequest, groups: Groups, progress: Progress) -> Advice:
    """Return the advice with the evidence of heads, and its best frozen features."""
    evidence = advice.evidence
    if evidence is None:
        return advice
    heads = compare_heads(
        evidence.analysis,
        request.heads,
        advice.labels,
        evidence.known,
        request.seed,
        groups,
        most=request.policy.max_compared,
        cut=request.cut,
        progress=progress,
    )
    return _frozen(replace(advice, heads=heads), replace(evidence, heads=heads), request)


def _frozen(advice: Advice, evidence: Evidence, request: AdviceRequest) -> Advice:
    """Return the advice with evidence, and the frozen features that it recommends."""
    installed = available(request.heads, request.strategies, evidence.known)
    missing = "fine-tuning is not tried yet" if advice.heads else "heads are not compared yet, nor is fine-tuning tried"
    frozen = recommend_frozen(evidence, installed).with_reasons(missing)
    return replace(advice, evidence=evidence, recommendation=frozen)


def _recommended(advice: Advice, request: AdviceRequest, shifts: Sequence[DomainShift]) -> Advice:
    """Return the advice with the domain shifts and, if there is evidence, what it recommends."""
    policy, evidence = request.policy, advice.evidence
    both = zip(advice.analyses, shifts, strict=True)
    advice = replace(advice, analyses=[with_shift(each, shift, policy.shift) for each, shift in both])
    if evidence is None:
        return advice
    analysis = advice.analysis
    best = replace(evidence.analysis, shift=analysis.shift, confidence=analysis.confidence)
    installed = available(request.heads, request.strategies, evidence.known)
    if request.cut is not None:
        installed = replace(installed, fine_tuning=None)
    evidence = replace(evidence, analysis=best)
    return replace(advice, evidence=evidence, recommendation=recommend(evidence, installed, policy.fine_tuning))


def _cut_as_requested(advice: Advice, cut: str | None) -> Advice:
    """Return the advice with the requested cut, whatever the evidence of others; nothing is fine-tuned then."""
    if cut is None:
        return advice
    chosen = replace(advice.recommendation, cut=cut)
    if not chosen.inconclusive:
        chosen = replace(chosen, agrees=None, reasons=(f"cut at {cut} as requested; the trunk stays frozen then",))
    return replace(advice, recommendation=chosen)
