"""The advice: facts, evidence and what follows from them; from a folder of images to a recommendation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.advice import analysis as evidences
from tlkit.advice import statistics as data_facts
from tlkit.advice.analysis import Sight, StageEvidence
from tlkit.advice.recommendation import Recommendation, available, cautious, recommend
from tlkit.advice.selection import HeadEvidence, best_stage, compare_heads, lead
from tlkit.advice.statistics import DataFacts
from tlkit.data import dataset as folder
from tlkit.data.dataset import Dataset
from tlkit.plugin.contract import Backbone, Component, Head, Progress, Strategy, silent
from tlkit.runtime.features import check_rejected
from tlkit.training.config import facts as strategy_facts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tlkit.audit.run import Audit


@dataclass(frozen=True, slots=True)
class Question:
    """What to advise on: backbones, the first one preferred, heads to choose from, and the installed strategies."""

    backbones: Sequence[Backbone]
    heads: Sequence[Head]
    strategies: Sequence[Strategy]
    origin: Callable[[Component], tuple[str, str]]  # distribution and version of the plugin that a component comes from
    val: float = 0.2
    max_bad: float = 0.01
    seed: int = 0
    cut: str | None = None  # that the user wants
    options: Mapping[str, Any] = field(default_factory=dict)  # others of `TrainingConfig`, for what is trained


@dataclass(frozen=True, slots=True)
class Advice:
    """Everything that was found out. `sights` has the backbones in the order asked; the images are those of train."""

    source: Path
    dataset: Dataset
    facts: DataFacts
    sights: Sequence[Sight]
    heads: Sequence[HeadEvidence]
    labels: NDArray[np.int64]
    recommendation: Recommendation
    rejected: Mapping[str, str] = field(default_factory=dict)
    trials: Sequence[Mapping[str, Any]] = ()
    audit: Audit | None = None

    def with_audit(self, audit: Audit) -> Advice:
        """Return the advice with the audit of its dataset."""
        return replace(self, audit=audit)

    @property
    def sight(self) -> Sight:
        """Of the backbone that is recommended."""
        return next(sight for sight in self.sights if sight.backbone.name == self.recommendation.backbone)

    def to_json(self) -> dict[str, Any]:
        """All but the features, as JSON knows it."""
        facts = asdict(self.facts)
        return {
            "source": str(self.source),
            "facts": {**facts, "classes": self.facts.classes, "imbalance": self.facts.imbalance},
            "backbones": [_sight(sight) for sight in self.sights],
            "heads": [asdict(head) for head in self.heads],
            "trials": [dict(trial) for trial in self.trials],
            "recommendation": self.recommendation.to_json(),
            "rejected": dict(self.rejected),
            **({} if self.audit is None else {"audit": self.audit.to_json()}),
        }


def _sight(sight: Sight) -> dict[str, Any]:
    sure = sight.confidence
    return {
        "backbone": sight.backbone.name,
        "shift": {**asdict(sight.shift), "kind": sight.shift.kind},
        "classifier": sure and {"greatest": sure.greatest, "entropy": sure.entropy, "energy": sure.energy},
        "stages": [_stage(stage, sight) for stage in sight.stages],
    }


def _stage(stage: StageEvidence, sight: Sight) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "width": stage.width,
        "probe": stage.probe.accuracy,
        "interval": list(stage.probe.interval),
        "nearest_mean": stage.nearest.accuracy,
        "logme": stage.logme,
        "h_score": stage.h_score,
        "shift": sight.shift.stages.get(stage.name),
    }


def advise(source: Path, question: Question, progress: Progress = silent, *, learnable: bool = False) -> Advice:
    """Look at the images that there are to learn from through each backbone, and say what fits them.

    Images to validate or to test on are not looked at. Raises `DataError` for a source without images, or with more
    that can't be used than allowed; where it has to be `learnable`, also for one that nothing can be trained on.
    """
    dataset = folder.read(source, val=question.val, learnable=learnable)
    samples = dataset.of("train")
    labels = np.array([sample.label for sample in samples], np.int64)
    sights = []
    for backbone in question.backbones:
        tick = progress(f"{backbone.name}", len(samples))
        sights.append(evidences.look(backbone, question.options.get("size"), samples, question.seed, tick))
    counted = (*samples, *dataset.of("val")) if learnable else samples  # those that training then counts
    check_rejected(sights[0].features, [sample.path for sample in counted], question.max_bad)
    rejected = {samples[index].name: why for index, why in sights[0].features.rejected.items()}
    usable = sights[0].features.usable
    # The same features are the same picture, unless the backbone sees nothing.
    seen = [data_facts.gather(dataset, samples, usable, sight.features.stage(-1)) for sight in sights]
    facts = max(seen, key=lambda each: each.distinct)
    installed = available(question.heads, question.strategies)
    lacking = facts.lacking()
    advice = Advice(source, dataset, facts, sights, (), labels, cautious(sights[0], installed.head, lacking), rejected)
    if lacking:
        return _cut_as_asked(advice, question.cut)
    rows = evidences.draw(labels, usable, evidences.MOST_PROBED, question.seed)
    classes = len(dataset.labels)
    sights = [replace(sight, stages=evidences.weigh(sight, rows, labels[rows], classes)) for sight in sights]
    chosen = best_sight(sights)
    if question.cut is not None:
        chosen, installed = chosen.only(question.cut), replace(installed, mover=None)
    several = question.heads if len(question.heads) > 1 else ()
    heads = compare_heads(chosen, best_stage(chosen.stages), several, labels, classes, question.seed)
    recommendation = recommend(facts, chosen, heads, installed, strategy_facts(dataset), len(dataset.of("val")))
    advice = replace(advice, sights=sights, heads=heads, recommendation=recommendation)
    return _cut_as_asked(advice, question.cut)


def _cut_as_asked(advice: Advice, cut: str | None) -> Advice:
    """With the cut that the user wants, whatever the evidence says of others, and then nothing moves."""
    if cut is None:
        return advice
    chosen = replace(advice.recommendation, cut=cut)
    if chosen.sure:
        chosen = replace(chosen, agrees=None, reasons=(f"cut at {cut}, as you say; with a cut of yours nothing moves",))
    return replace(advice, recommendation=chosen)


def best_sight(sights: Sequence[Sight]) -> Sight:
    """The backbone to take: the first, unless another's best stage is ahead of it by more than its error."""
    best = sights[0]
    for sight in sights[1:]:
        if lead(best_stage(sight.stages), best_stage(best.stages)).exceeds_error:
            best = sight
    return best
