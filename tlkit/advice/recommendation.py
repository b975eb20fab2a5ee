"""What to do: strategy, cut and head, with the rule that applies, what to expect and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tlkit.advice.analysis import Sight, StageEvidence
from tlkit.advice.scenarios import Case, agreement, case_of
from tlkit.advice.selection import PREFERRED, HeadEvidence, best_head, best_stage
from tlkit.advice.statistics import DataFacts
from tlkit.errors import TlkitError
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import DatasetStatistics, Head, Strategy
from tlkit.plugin.options import configure
from tlkit.training.speed import seconds_an_image
from tlkit.util.statistics import wilson

# Shares of images called wrong by frozen features up to which moving the trunk is not worth its time: of any images,
# and of few that are like those of the pretraining.
ROOM, ROOM_OF_FEW = 0.03, 0.1
EPOCHS = 10  # of a fine-tuning
MOVER = "probe-then-tune"  # its head is right before the trunk begins to move
# How auto moves a trunk: further than by default, as it moves only where there is far to go, and to an average of the
# last ten steps, which on few images differ by points.
MOVES = {"trunk_lr": 1e-3, "ema": 0.9}
USUAL_SPEED = 100.0  # images a second from file to features, where none had to be run
SURE, UNSURE = "recommended", "not enough to tell"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to train and why. `accuracy` is the range to expect (95 %), None where nobody can say.

    `settings` are options of the components, by `kind.option`; `moving` counts the deepest stages that learn.
    """

    verdict: str
    backbone: str
    strategy: str
    cut: str
    head: str
    trainable: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    case: str | None = None
    rule: str = ""
    agrees: bool | None = None
    reasons: Sequence[str] = ()
    accuracy: tuple[float, float] | None = None
    seconds: float | None = None
    still: str | None = None  # head of frozen features, where the trunk moves

    def __str__(self) -> str:
        from tlkit.advice.page import summary

        return "\n".join(summary(self))

    def frozen(self) -> Recommendation:
        """The best without moving the trunk."""
        if self.still is None:
            return self
        return replace(self, strategy="frozen", head=self.still, trainable=0, settings={}, rates={}, still=None)

    def moved(
        self, strategy: Strategy, head: str, stages: Sequence[str], known: DatasetStatistics, epochs: int
    ) -> Recommendation:
        """With the trunk moved by a strategy, cut where it is, under a head that learns by gradient.

        On a few hundred images the best cut for frozen features is the best for a trunk that moves, too: to what a
        deeper stage has learnt of other images they add little, and it costs time.
        """
        options = {"epochs": epochs, **MOVES}
        last = configure(strategy, options).phases(stages[: stages.index(self.cut) + 1], known)[-1]
        return replace(
            self,
            strategy=strategy.name,
            head=head,
            trainable=last.trainable,
            settings={f"strategy.{name}": value for name, value in options.items()},
            rates={"head": last.head_lr, self.cut: last.trunk_lr, "factor a stage": last.lr_decay},
            still=self.frozen().head,
        )

    def because(self, *reasons: str) -> Recommendation:
        """With more reasons."""
        return replace(self, reasons=(*self.reasons, *reasons))

    @property
    def sure(self) -> bool:
        """Whether there was enough to tell."""
        return self.verdict == SURE

    def arguments(self) -> list[str]:
        """The options of `tlkit train` that do it."""
        chosen = {"backbone": self.backbone, "strategy": self.strategy, "cut": self.cut, "head": self.head}
        words = [word for name, value in chosen.items() for word in (f"--{name}", value)]
        return words + [word for name, value in self.settings.items() for word in ("--set", f"{name}={value}")]

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        facts = asdict(self)
        return {**facts, "reasons": list(self.reasons), "accuracy": self.accuracy and list(self.accuracy)}


@dataclass(frozen=True, slots=True)
class Available:
    """What can be recommended: a head where none is ahead, and the strategy to move a trunk with, if there is one."""

    head: str
    mover: Strategy | None


def available(heads: Sequence[Head], strategies: Sequence[Strategy]) -> Available:
    """The preferred head, or else the first; nothing moves under a head that can't learn by gradient."""
    head = next((head for head in heads if head.name == PREFERRED), heads[0])
    try:
        head.module(2, 2)
    except TlkitError:
        return Available(head.name, None)
    return Available(head.name, next((strategy for strategy in strategies if strategy.name == MOVER), None))


def cautious(sight: Sight, head: str, lacking: Sequence[str]) -> Recommendation:
    """Where nothing can be told: what does the least harm, and what is lacking."""
    return Recommendation(UNSURE, sight.backbone.name, "frozen", sight.trunk.names[-1], head, reasons=tuple(lacking))


def recommend(
    facts: DataFacts,
    sight: Sight,
    heads: Sequence[HeadEvidence],
    installed: Available,
    known: DatasetStatistics,
    val: int,
) -> Recommendation:
    """The recommendation for one backbone; `val` counts the images to validate on."""
    cut = best_stage(sight.stages)
    head = best_head(heads, cut.name)
    case = case_of(facts.large, sight.shift.likeness)
    room = 1.0 - sum(cut.probe.interval) / 2
    why_still = _why_still(facts, sight, room, installed)
    mover = None if why_still else installed.mover
    agrees, said = _agreement(case, sight, cut, room, tunes=mover is not None)
    measured = cut.probe.interval if head is None else wilson(round(head.accuracy * head.images), head.images)
    frozen = Recommendation(
        SURE,
        sight.backbone.name,
        "frozen",
        cut.name,
        installed.head if head is None else head.head,
        case=None if case is None else case.name,
        rule="" if case is None else case.says,
        agrees=agrees,
        reasons=(said, _about_cut(cut, sight.stages)),
        accuracy=(min(measured[0], cut.probe.interval[0]), max(measured[1], cut.probe.interval[1])),
        seconds=(facts.images + val) / (sight.speed or USUAL_SPEED) + _solving(facts, head),
    )
    if mover is None:
        return frozen.because(f"the trunk stays: {why_still}")
    moved = frozen.moved(mover, installed.head, sight.trunk.names, known, EPOCHS)
    took = EPOCHS * epoch_seconds(sight.trunk.upto(cut.name), moved.trainable, facts.images, val)
    why = f"frozen features leave {room:.1%} to be gained; auto keeps a moved trunk only if it does better on val"
    return replace(moved, accuracy=(cut.probe.interval[0], 1.0), seconds=(frozen.seconds or 0.0) + took).because(why)


def _why_still(facts: DataFacts, sight: Sight, room: float, installed: Available) -> str:
    """Why the trunk had better stay as it is; empty where moving it is worth a trial.

    By the rule of the craft few images never move a trunk. In trials with 100 and 500 images of two sets that are not
    like those of the pretraining it gained 2 to 11 points. Of two that are like them it gained 7 with 500 images of
    which frozen features leave a third, and lost 1 where they leave a twentieth.
    """
    if room <= ROOM:
        return f"frozen features call {1 - room:.1%} right, little is left to gain"
    if not facts.large and sight.shift.likeness == "alike" and room <= ROOM_OF_FEW:
        return f"few images, like those it has learnt from, of which frozen features call {1 - room:.1%} right"
    if installed.mover is None:
        return "no installed strategy trains it under a head that learns by gradient"
    return ""


def epoch_seconds(trunk: Trunk, trainable: int, images: int, val: int) -> float:
    """Seconds for an epoch in which stages move, by a few measured steps; forward alone is a third of a step."""
    step = seconds_an_image(trunk, trainable)
    return images * step + val * step / 3


def _agreement(
    case: Case | None, sight: Sight, cut: StageEvidence, room: float, *, tunes: bool
) -> tuple[bool | None, str]:
    if case is None:
        shift = sight.shift
        return None, f"no rule applies, and the evidence decides alone: likeness is {shift.likeness}, {shift.reason}"
    return agreement(case, cut=cut.name, deepest=sight.stages[-1].name, tunes=tunes, room=room)


def _about_cut(cut: StageEvidence, stages: Sequence[StageEvidence]) -> str:
    """The evidence of the cut, and of the best of the others."""
    others = [stage for stage in stages if stage is not cut]
    if not others:
        return f"cut at {cut.name}, the only stage"
    other = best_stage(others)
    return f"cut at {cut.name}: {_said(cut)}; the next best, {other.name}: {_said(other)}"


def _said(stage: StageEvidence) -> str:
    sure = "" if stage.probe.log_loss is None else f" with a log-loss of {stage.probe.log_loss:.2f}"
    return f"its probe calls {stage.probe.accuracy:.1%} right{sure}"


def _solving(facts: DataFacts, head: HeadEvidence | None) -> float:
    """Seconds to solve the head on all images, from those that it took on some."""
    return 2.0 if head is None else head.seconds * (facts.images / head.images) ** 1.5
