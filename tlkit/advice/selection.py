"""Selection of a cut and a head, together, by cross-validation; and the plans that there are to fine-tune with."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.advice.backbone_analysis import BackboneAnalysis, StageEvidence, stratified
from tlkit.defaults import DEFAULT_HEAD, FINE_TUNING
from tlkit.errors import PluginError, TlkitError, TlkitWarning
from tlkit.model.cut import JOINT, check_cut
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import DatasetStatistics, Head, Progress, Strategy, silent
from tlkit.plugin.options import configure, differences, to_json
from tlkit.training.device import seconds_per_image
from tlkit.training.heads import head_report, solve
from tlkit.util.statistics import effective_images, paired_difference

Labels = NDArray[np.int64]

VIEWS = 4  # cached per image, unless a training is told otherwise
SLOWER = 1.5  # a whole training beside a few of its steps: checkpoints, the export of the new trunk, other work
MIN_LEAD = 0.1  # of the log loss, by which one stage must be better than two joined
COMPARED_STAGES = 3  # best ones by the probe, at which the default head is cross-validated


@dataclass(frozen=True, slots=True)
class HeadEvidence:
    """A head that was cross-validated on the features of a stage, as it reports after `solve`.

    `settings` are the options in which it differs from the installed head; `images` are those of balanced classes
    with which the balanced accuracy is as certain.
    """

    stage: str
    head: str
    balanced_accuracy: float
    log_loss: float
    images: int
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The head and its settings, for tables."""
        return ", ".join([self.head, *(f"{name} {value}" for name, value in self.settings.items())])

    @property
    def score(self) -> float:
        """Score by which the stages of a head are compared."""
        return _score(self.balanced_accuracy, self.log_loss)


def _score(balanced_accuracy: float, log_loss: float | None) -> float:
    """Return the balanced accuracy less half the log loss.

    Accuracy alone is a coarse measure on few images, and where a classifier is correct by a small margin another may
    not be.
    """
    return balanced_accuracy - (log_loss or 0.0) / 2


def best_stage(stages: Sequence[StageEvidence], heads: Sequence[HeadEvidence] = ()) -> StageEvidence:
    """Return the stage to cut at: that of the greatest score of the probe and, where it was compared, the first head.

    Of equals it is the deepest. Measured with every cut and head on draws of 80, 400 and 1,600 images of four sets, the
    rule chosen on three of them and tested on the fourth: see benchmarks/results/advise-rules.md.
    """
    named = [(each.head, each.settings) for each in heads]
    first = {each.stage: each.score for each, name in zip(heads, named, strict=True) if name == named[0]}
    compared = [stage for stage in stages if stage.name in first] or stages

    def score(stage: StageEvidence) -> float:
        probe = _score(stage.probe.balanced_accuracy, stage.probe.log_loss)
        return (probe + first.get(stage.name, probe)) / 2

    return max(reversed(compared), key=score)


def best_cut(stages: Sequence[StageEvidence], heads: Sequence[HeadEvidence] = ()) -> str:
    """Return the cut of frozen features: the two best stages joined, unless the first head is better on one alone.

    Which stage is the best is uncertain on few images, and two lose little where one would do. So one has to be better
    by a tenth of its log loss: on draws of 100 and of up to 500 images of eight sets, that gained 0.7 points on average
    over the better of one and two; twentieths and fifths gained as much.
    """
    single = best_stage(stages, heads).name
    first = {each.stage: each.log_loss for each in heads if not each.settings and each.head == heads[0].head}
    joined = next((stage for stage in first if JOINT in stage), single)
    return joined if first.get(single, math.inf) >= (1 - MIN_LEAD) * first.get(joined, math.inf) else single


def best_backbone(analyses: Sequence[BackboneAnalysis]) -> BackboneAnalysis:
    """Return the first backbone, unless another's best stage is better by more than the error."""
    best = analyses[0]
    for analysis in analyses[1:]:
        one, other = best_stage(analysis.stages).probe, best_stage(best.stages).probe
        if paired_difference(one.correct, other.correct, one.labels).exceeds_error:
            best = analysis
    return best


def compare_heads(  # noqa: PLR0913  # the features, labels and groups of one dataset
    analysis: BackboneAnalysis,
    heads: Sequence[Head],
    labels: Labels,
    known: DatasetStatistics,
    seed: int,
    groups: Labels | None = None,
    *,
    most: int,
    cut: str | None = None,
    progress: Progress = silent,
) -> list[HeadEvidence]:
    """Return the evidence of each head that can be solved and reports a cross-validation, on `most` images.

    The default head, or else the first, is compared at the best stages of the probe, and at the two best of these
    joined; the others, and with each head its `candidates` for a dataset like this, at the best of all. With a `cut`
    all are compared there alone.
    """
    rows = stratified(labels, analysis.features.usable, most, seed)
    own = None if groups is None else groups[rows]

    def evidence(head: Head, candidate: Head, stage: str) -> Iterator[HeadEvidence]:
        started = time.perf_counter()
        features = np.ascontiguousarray(analysis.features.at(stage, rows))
        compared = None
        with _left_out(TlkitError):
            solved = solve(candidate, features, labels[rows], known.classes, seed, own)
            compared = None if solved is None else cross_validated(head_report(candidate, solved))
        if compared is not None:
            seconds, images = time.perf_counter() - started, round(effective_images(labels[rows]))
            settings = differences(head, candidate)
            yield HeadEvidence(stage, head.name, *compared, images, seconds, settings)
        tick(1)

    first, *others = sorted(heads, key=lambda head: head.name != DEFAULT_HEAD)
    rest = list[tuple[Head, Head]]()
    for head in (first, *others):
        rest += [(head, head)] if head is not first else []
        with _left_out():
            rest += [(head, each) for each in head.candidates(known)]
    stages = [cut] if cut is not None else _best(analysis.stages, (), COMPARED_STAGES)
    tick = progress("comparing heads", len(stages) + (len(stages) > 1) + len(rest))
    found = [one for stage in stages for one in evidence(first, first, stage)]
    if len(stages) > 1 and found:
        found += evidence(first, first, check_cut(JOINT.join(_best(analysis.stages, found, 2)), analysis.trunk.names))
    stage = cut or best_cut(analysis.stages, found)
    return found + [one for head, candidate in rest for one in evidence(head, candidate, stage)]


@contextmanager
def _left_out(silent: type[TlkitError] = PluginError) -> Iterator[None]:
    """Leave a component out that fails, as it was not asked for by name; say so if that is its plugin's fault."""
    try:
        yield
    except PluginError as fault:
        warnings.warn(f"{fault.what}; it is left out", TlkitWarning, stacklevel=2)
    except silent:
        pass


def _best(stages: Sequence[StageEvidence], heads: Sequence[HeadEvidence], most: int) -> list[str]:
    """Return the names of the best stages, the best first."""
    left, best = list(stages), list[str]()
    while left and len(best) < most:
        best.append(best_stage(left, [each for each in heads if each.stage not in best]).name)
        left = [stage for stage in left if stage.name != best[-1]]
    return best


def cross_validated(report: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the accuracy and the log loss that heads are compared by, of a head's report; None if it has not both."""
    accuracy, log_loss = report.get("cv_balanced_accuracy", report.get("cv_accuracy")), report.get("cv_log_loss")
    if not (isinstance(accuracy, int | float) and isinstance(log_loss, int | float)):
        return None
    return (float(accuracy), float(log_loss)) if 0 <= accuracy <= 1 and 0 <= log_loss < math.inf else None


def best_head(found: Sequence[HeadEvidence], stage: str) -> HeadEvidence | None:
    """Return the head to use at a stage: the default, unless one is more accurate by more than 1.5 standard errors."""
    here = [each for each in found if each.stage == stage]
    if not here:
        return None
    best = max(here, key=lambda each: (each.balanced_accuracy, -each.log_loss))
    default = next((each for each in here if each.head == DEFAULT_HEAD and not each.settings), best)
    share = best.balanced_accuracy
    error = 1.5 * np.sqrt(max(share * (1 - share), 1e-4) / best.images)
    return best if best.balanced_accuracy - default.balanced_accuracy > error else default


@dataclass(frozen=True, slots=True)
class FineTuning:
    """A configured strategy to fine-tune with, and the options in which it differs from the installed one."""

    strategy: Strategy
    settings: Mapping[str, Any] = field(default_factory=dict)

    def limited(self, epochs: int) -> FineTuning:
        """Return it with at most so many epochs, if it has that option."""
        if not isinstance(own := to_json(self.strategy).get("epochs"), int) or own <= epochs:
            return self
        return FineTuning(configure(self.strategy, {"epochs": epochs}), {**self.settings, "epochs": epochs})

    def seconds(self, trunk: Trunk, known: DatasetStatistics, val: int, per_image: float) -> tuple[float, float]:
        """Return the range of the time that its phases take, by a few measured steps of each.

        A forward pass, for the `val` validation images, is a third of a step; `per_image` is the time of an image
        from file to features. The output of frozen stages is cached for a few views of each image.
        """
        low, high, images = 0.0, 0.0, known.images + val / 3
        for phase in self.strategy.phases(trunk.names, known):
            if phase.trainable:
                least, greatest, frozen, cached = seconds_per_image(trunk, phase, self.strategy.prepare)
                passes = min(VIEWS, phase.epochs) if cached else phase.epochs
                low += phase.epochs * images * least
                high += images * (phase.epochs * greatest + passes * max(frozen, per_image))
        return low, SLOWER * high


@dataclass(frozen=True, slots=True)
class Available:
    """Installed components to recommend: the head if no other is better, and the strategies to fine-tune with."""

    head: str
    fine_tuning: FineTuning | None
    candidates: Sequence[FineTuning] = ()


def available(heads: Sequence[Head], strategies: Sequence[Strategy], known: DatasetStatistics) -> Available:
    """Return the default head, or else the first, the default strategy, or else the first candidate, and all of these.

    Under a head that can't be trained by gradient, and names no other to train with, there are none.
    """
    head = next((head for head in heads if head.name == DEFAULT_HEAD), heads[0])
    try:
        (head.stand_in() or head).module(2, 2)
    except TlkitError:
        return Available(head.name, None)
    candidates = []
    for strategy in strategies:
        with _left_out():
            candidates += [FineTuning(each, differences(strategy, each)) for each in strategy.candidates(known)]
    preferred = sorted(candidates, key=lambda each: each.strategy.name != FINE_TUNING)[:1]
    return Available(head.name, preferred[0] if preferred else None, candidates)
