"""Recommendation: strategy, cut and head, with the scenario that applies, the accuracy to expect and the time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tlkit.advice.backbone_analysis import BackboneAnalysis, StageEvidence
from tlkit.advice.dataset_statistics import FEW, ImageStatistics
from tlkit.advice.scenarios import Scenario, agreement, find_scenario
from tlkit.advice.selection import Available, FineTuning, HeadEvidence, best_cut, best_head, best_stage
from tlkit.defaults import FROZEN
from tlkit.evaluation.disturbed import Comparison
from tlkit.model.cut import JOINT
from tlkit.plugin.contract import IMBALANCED, DatasetStatistics
from tlkit.plugin.phases import trainable_stages
from tlkit.util.statistics import effective_images, wilson
from tlkit.util.text import format_seconds, listed

RECOMMENDED, INCONCLUSIVE = "recommended", "inconclusive"
SECONDS_TO_SOLVE = 2.0  # of a head whose time is not known


@dataclass(frozen=True, slots=True)
class FineTuningPolicy:
    """Conditions and options of fine-tuning.

    A quick trial decides whether it is worth its time. Without one it is recommended if frozen features misclassify
    more than the share `min_error` of the images; of a small dataset that is similar to the pretraining data, more than
    `min_error_small_similar`.
    """

    trial: bool = True  # for auto, where any image is misclassified
    min_error: float = 0.03
    min_error_small_similar: float = 0.1
    epochs: int = 50  # at most, of a strategy with that option
    min_epochs: int = 2  # of a trial


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Recommended training and the reasons; printed, the verdict in words.

    `accuracy` is the range of the balanced accuracy to expect (95 %), None if inconclusive. `settings` are options of
    the strategy, by `kind.option`, and `head_settings` those of the head; `trainable` counts the stages that are
    fine-tuned. The fields `frozen_` are those of frozen features, if the trunk is fine-tuned.
    """

    verdict: str
    backbone: str
    strategy: str
    cut: str
    head: str
    trainable: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    lr_decay: float = 1.0
    scenario: str | None = None
    rule: str = ""
    agrees: bool | None = None
    reasons: Sequence[str] = ()
    accuracy: tuple[float, float] | None = None
    seconds: tuple[float, float] | None = None
    frozen_cut: str | None = None
    frozen_head: str | None = None
    head_settings: Mapping[str, Any] = field(default_factory=dict)
    frozen_head_settings: Mapping[str, Any] = field(default_factory=dict)
    frozen_accuracy: tuple[float, float] | None = None
    frozen_seconds: tuple[float, float] | None = None

    @property
    def inconclusive(self) -> bool:
        """True if the dataset is too small for a recommendation."""
        return self.verdict == INCONCLUSIVE

    def frozen(self) -> Recommendation:
        """Return the best recommendation without fine-tuning."""
        if self.frozen_head is None:
            return self
        return replace(
            self,
            strategy=FROZEN,
            cut=self.frozen_cut or self.cut,
            head=self.frozen_head,
            head_settings=self.frozen_head_settings,
            trainable=0,
            settings={},
            learning_rates={},
            lr_decay=1.0,
            accuracy=self.frozen_accuracy,
            seconds=self.frozen_seconds,
            frozen_cut=None,
            frozen_head=None,
            frozen_head_settings={},
            frozen_accuracy=None,
            frozen_seconds=None,
        )

    def fine_tuned(
        self, plan: FineTuning, head: str, cut: str, stages: Sequence[str], known: DatasetStatistics
    ) -> Recommendation:
        """Return the recommendation with the trunk fine-tuned by a strategy, cut at a stage, under a trainable head.

        On a few hundred images the best stage for frozen features is the best for a fine-tuned trunk, too: deeper ones
        add little to it, and cost time.
        """
        kept = stages[: stages.index(cut) + 1]
        phases = plan.strategy.phases(kept, known)
        last = next((phase for phase in reversed(phases) if phase.trainable), phases[-1])
        frozen = self.frozen()
        return replace(
            self,
            strategy=plan.strategy.name,
            cut=cut,
            head=head,
            head_settings={},
            trainable=len({stage for phase in phases for stage in trainable_stages(phase, kept)}),
            settings={f"strategy.{name}": value for name, value in plan.settings.items()},
            learning_rates={"head": last.head_lr, cut: last.trunk_lr},
            lr_decay=last.lr_decay,
            frozen_cut=frozen.cut,
            frozen_head=frozen.head,
            frozen_head_settings=frozen.head_settings,
            frozen_accuracy=frozen.accuracy,
            frozen_seconds=frozen.seconds,
        )

    def with_reasons(self, *reasons: str) -> Recommendation:
        return replace(self, reasons=(*self.reasons, *reasons))

    def arguments(self) -> list[str]:
        """Return the options of `tlkit train` that follow it."""
        chosen = {"backbone": self.backbone, "strategy": self.strategy, "cut": self.cut, "head": self.head}
        words = [word for name, value in chosen.items() for word in (f"--{name}", value)]
        settings = {**self.settings, **{f"head.{name}": value for name, value in self.head_settings.items()}}
        return words + [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reasons": list(self.reasons), "accuracy": self.accuracy and list(self.accuracy)}

    def summary(self) -> str:
        """Return the verdict, and what to train or why it is inconclusive, on one line."""
        if self.inconclusive:
            return f"INCONCLUSIVE: {'; '.join(self.reasons)}"
        settings = "".join(f", {name} {value}" for name, value in self.head_settings.items())
        return f"RECOMMENDED: {self.strategy}, {self.backbone} up to {self.cut}, {self.head} head{settings}"

    def details(self) -> Iterator[str]:
        """Yield stages, expected accuracy, time, scenario and reasons, a line each."""
        if self.inconclusive:
            yield "more distinct images per class are needed for a recommendation"
            return
        if self.trainable:
            rates = ", ".join(f"{name} {rate:g}" for name, rate in self.learning_rates.items())
            yield f"{self.trainable} trainable stages, learning rates: {rates}, lr_decay {self.lr_decay:g}"
        if self.accuracy is not None:
            yield "expected balanced accuracy {:.1%} to {:.1%}".format(*self.accuracy)
        if self.seconds is not None:
            yield "time on this machine {} to {}".format(*map(format_seconds, self.seconds))
        if self.scenario is not None:
            yield f"scenario: {self.scenario}: {self.rule}"
        yield from self.reasons

    def __str__(self) -> str:
        return "\n  ".join([self.summary(), *self.details()])


def cautious(analysis: BackboneAnalysis, head: str, shortcomings: Sequence[str]) -> Recommendation:
    """Return an inconclusive recommendation: frozen features of the deepest stage."""
    name, deepest = analysis.backbone.name, analysis.trunk.names[-1]
    return Recommendation(INCONCLUSIVE, name, FROZEN, deepest, head, reasons=tuple(shortcomings))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a recommendation rests on; `val` counts the validation images, `trial` is a quick one."""

    statistics: ImageStatistics
    large: bool
    analysis: BackboneAnalysis
    heads: Sequence[HeadEvidence]
    known: DatasetStatistics
    val: int
    trial: Comparison | None = None

    @property
    def cut(self) -> StageEvidence:
        """Best stage to cut at."""
        return best_stage(self.analysis.stages, self.heads)

    @property
    def frozen_cut(self) -> str:
        """Cut of frozen features: the best stage, or several joined."""
        return best_cut(self.analysis.stages, self.heads)

    @property
    def error(self) -> float:
        """Share of images that frozen features misclassify, as a mean over the classes.

        It is the middle of an interval over all images. In the middle of `Probe.interval`, which adds those of the
        classes, it would grow with their number, and `FineTuningPolicy` would mean another share for each dataset.
        """
        probe = self.cut.probe
        return 1.0 - sum(_wilson(probe.balanced_accuracy, round(effective_images(probe.labels)))) / 2

    @property
    def scenario(self) -> Scenario | None:
        """Transfer-learning scenario that applies, if one does."""
        return find_scenario(self.large, self.analysis.shift.domain)


def recommend_frozen(evidence: Evidence, installed: Available, *, fine_tunes: bool = False) -> Recommendation:
    """Return the best frozen features for one backbone, whether or not it then `fine_tunes` them."""
    statistics, analysis, cut, scenario = evidence.statistics, evidence.analysis, evidence.cut, evidence.scenario
    head = best_head(evidence.heads, evidence.frozen_cut)
    agrees, reason = _agreement(evidence, fine_tunes=fine_tunes)
    measured = cut.probe.interval if head is None else _wilson(head.balanced_accuracy, head.images)
    per_image = analysis.seconds_per_image
    # The time to solve a head grows faster than the number of images.
    solving = SECONDS_TO_SOLVE if head is None else head.seconds * (statistics.images / head.images) ** 1.5
    return Recommendation(
        RECOMMENDED,
        analysis.backbone.name,
        FROZEN,
        evidence.frozen_cut,
        installed.head if head is None else head.head,
        head_settings={} if head is None else head.settings,
        scenario=None if scenario is None else scenario.name,
        rule="" if scenario is None else scenario.rule,
        agrees=agrees,
        reasons=(reason, _about_cut(cut, analysis.stages), *_about_joined(evidence), *_about_classes(statistics)),
        accuracy=(min(measured[0], cut.probe.interval[0]), max(measured[1], cut.probe.interval[1])),
        seconds=(solving + evidence.val * per_image, 2 * solving + (statistics.images + evidence.val) * per_image),
    )


def recommend(evidence: Evidence, installed: Available, policy: FineTuningPolicy) -> Recommendation:
    """Return the recommendation for one backbone."""
    analysis, cut = evidence.analysis, evidence.cut
    freeze = _reason_to_freeze(evidence, installed, policy)
    strategy = None if freeze else installed.fine_tuning
    frozen = recommend_frozen(evidence, installed, fine_tunes=strategy is not None)
    if strategy is None:
        return frozen.with_reasons(f"the trunk stays frozen: {freeze}")
    per_image = analysis.seconds_per_image
    plan = strategy.limited(policy.epochs)
    tuned = frozen.fine_tuned(plan, installed.head, cut.name, analysis.trunk.names, evidence.known)
    before, taken = (
        frozen.seconds or (0.0, 0.0),
        plan.seconds(analysis.trunk.upto(cut.name), evidence.known, evidence.val, per_image),
    )
    return replace(
        tuned,
        accuracy=_expected(evidence, frozen.accuracy or (0.0, 1.0)),
        seconds=(before[0] + taken[0], before[1] + taken[1]),
    ).with_reasons(
        f"frozen features misclassify {evidence.error:.1%}; auto keeps a fine-tuned trunk only if it is better on val",
        *(() if evidence.trial is None else (f"a trial with few trainable stages: {evidence.trial}",)),
    )


def _expected(evidence: Evidence, frozen: tuple[float, float]) -> tuple[float, float]:
    """Return the range of the balanced accuracy to expect of a fine-tuned trunk.

    Below, that of frozen features, which are kept if it is worse. Above, what is left of the errors at the least: a
    tenth of those of frozen features, or half of those of a trial.
    """
    low, high = frozen
    if evidence.trial is None:
        return low, 1.0 - (1.0 - high) / 10
    return low, max(high, 1.0 - (1.0 - evidence.trial.interval[1]) / 2)


def _wilson(balanced_accuracy: float, images: int) -> tuple[float, float]:
    """Return the interval of a balanced accuracy, given that many images of balanced classes."""
    return wilson(round(balanced_accuracy * images), images)


def _reason_to_freeze(evidence: Evidence, installed: Available, policy: FineTuningPolicy) -> str:
    """Return why the trunk should stay frozen; empty if fine-tuning is worth its time.

    By the rule of the scenarios a small dataset never fine-tunes. In trials with 100 and 500 images of two datasets
    different from the pretraining data it gained 2 to 11 points. Of two similar ones it gained 7 with 500 images of
    which frozen features misclassify a third, and lost 1 where they misclassify a twentieth.
    """
    error, trial = evidence.error, evidence.trial
    if installed.fine_tuning is None:
        return "no installed strategy fine-tunes it under a head that can be trained by gradient"
    if trial is not None:
        return "" if trial.better else f"a trial with few trainable stages: {trial}"
    if error <= policy.min_error:
        return f"its features misclassify {error:.1%}, little is left to gain"
    similar = evidence.analysis.shift.domain == "similar"
    if not evidence.large and similar and error <= policy.min_error_small_similar:
        return f"a small dataset, similar to the pretraining data, of which its features misclassify {error:.1%}"
    return ""


def _agreement(evidence: Evidence, *, fine_tunes: bool) -> tuple[bool | None, str]:
    scenario, shift = evidence.scenario, evidence.analysis.shift
    if scenario is None:
        return None, f"no scenario applies, the evidence alone decides: the domain is {shift.domain}, {shift.reason}"
    deepest = evidence.analysis.stages[-1].name
    return agreement(scenario, cut=evidence.cut.name, deepest=deepest, fine_tunes=fine_tunes, error=evidence.error)


def _about_cut(cut: StageEvidence, stages: Sequence[StageEvidence]) -> str:
    """Return the evidence of the cut, and of the best other stage."""
    others = [stage for stage in stages if stage is not cut]
    if not others:
        return f"cut at {cut.name}, the only stage"
    other = best_stage(others)
    return f"cut at {cut.name}: {_probe(cut)}; the next best, {other.name}: {_probe(other)}"


def _about_joined(evidence: Evidence) -> Iterator[str]:
    """Yield how the features of two stages do under the first head, where they were compared."""
    first = {each.stage: each for each in evidence.heads if each.head == evidence.heads[0].head and not each.settings}
    single = first.get(evidence.cut.name)
    for name, each in first.items():
        if JOINT in name and single is not None:
            values = [f"{one.balanced_accuracy:.1%} with a log loss of {one.log_loss:.2f}" for one in (each, single)]
            yield f"frozen, {name} joined: {values[0]}; {single.stage} alone: {values[1]}"


def _about_classes(statistics: ImageStatistics) -> Iterator[str]:
    """Yield what to compare the figures of an imbalanced dataset with, and classes too small to say anything of."""
    if statistics.imbalance >= IMBALANCED:
        share = max(statistics.per_class.values()) / statistics.images
        yield f"figures are means over the classes; always the largest class is right for {share:.1%} of the images"
    if few := [f"{label} {count}" for label, count in statistics.distinct_per_class.items() if count < FEW]:
        yield f"classes with too few images to say how well they are recognized: {listed(few)}"


def _probe(stage: StageEvidence) -> str:
    log_loss = "" if stage.probe.log_loss is None else f" with a log loss of {stage.probe.log_loss:.2f}"
    return f"balanced accuracy of the probe {stage.probe.balanced_accuracy:.1%}{log_loss}"
