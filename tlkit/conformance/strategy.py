"""What is asked of a strategy: it is a pure function, so it is asked for every number of stages and extreme facts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tlkit.conformance.subject import Subject, expect, prepared
from tlkit.plugin.contract import DatasetStatistics, Phase, Strategy

STAGES = range(1, 21)
STATISTICS = (
    DatasetStatistics(images=2, classes=2, smallest_class=1, largest_class=1),
    DatasetStatistics(images=100, classes=100, smallest_class=1, largest_class=1),
    DatasetStatistics(images=40, classes=2, smallest_class=20, largest_class=20),
    DatasetStatistics(images=5_000, classes=10, smallest_class=500, largest_class=500),
    DatasetStatistics(images=100_000, classes=2, smallest_class=1, largest_class=99_999),
    DatasetStatistics(images=50_000, classes=1_000, smallest_class=3, largest_class=9_000),
    DatasetStatistics(images=10_000_000, classes=1_000, smallest_class=10_000, largest_class=10_000),
)
MOST_EPOCHS = 10_000


@dataclass(frozen=True)
class Answer:
    """What a strategy said for some stages and facts."""

    stages: tuple[str, ...]
    info: DatasetStatistics
    cut: str
    phases: Sequence[Phase]

    def __str__(self) -> str:
        return f"for {len(self.stages)} stages and {self.info}"


class StrategySubject(Subject[Strategy]):
    """A strategy under examination."""

    @prepared("answers")
    def answers(self) -> list[Answer]:
        """What it says for all stages and facts."""
        return [self.ask(count, info) for count in STAGES for info in STATISTICS]

    def ask(self, count: int, info: DatasetStatistics) -> Answer:
        """What it says for a number of stages; as in training, the phases are for the stages up to the cut."""
        stages = [f"stage{number}" for number in range(1, count + 1)]
        cut = self.component.cut(tuple(stages), info)
        kept = stages[: stages.index(cut) + 1] if cut in stages else stages
        return Answer(tuple(stages), info, cut, self.component.phases(tuple(kept), info))

    def phases(self) -> Iterator[tuple[Answer, Phase, int]]:
        """Every phase it asks for, with how many stages there are up to the cut."""
        for answer in self.answers:
            kept = answer.stages.index(answer.cut) + 1 if answer.cut in answer.stages else len(answer.stages)
            for phase in answer.phases:
                yield answer, phase, kept


def answers(subject: StrategySubject) -> None:
    """It has phases for 1 to 20 stages of any name, from one image a class to ten million images."""
    for answer in subject.answers:
        phases = answer.phases
        fits = isinstance(phases, Sequence) and len(phases) > 0 and all(isinstance(phase, Phase) for phase in phases)
        expect(fits, f"{answer}, it returns {phases!r}", do="return a tuple of one `Phase` or more")


def cut_is_a_stage(subject: StrategySubject) -> None:
    """It cuts at one of the stages."""
    for answer in subject.answers:
        expect(answer.cut in answer.stages, f"{answer}, it cuts at {answer.cut!r}", do="return one of `stages`")


def pure(subject: StrategySubject) -> None:
    """The same stages and facts give the same answer, whatever was asked before."""
    for answer in reversed(subject.answers):
        again = subject.ask(len(answer.stages), answer.info)
        same = (again.cut, tuple(again.phases)) == (answer.cut, tuple(answer.phases))
        expect(same, f"{answer}, it says one thing and then another", do="depend on the arguments alone")


def leaves_its_arguments_alone(subject: StrategySubject) -> None:
    """A list of stages is as it was afterwards."""
    stages = ["stem", "body", "last"]
    subject.component.cut(stages, STATISTICS[0])
    subject.component.phases(stages, STATISTICS[0])
    expect(stages == ["stem", "body", "last"], f"it changes its stages to {stages}", do="work on a copy")


def epochs_are_positive(subject: StrategySubject) -> None:
    """Every phase has a whole number of epochs from 1 to ten thousand."""
    for answer, phase, _ in subject.phases():
        fits = type(phase.epochs) is int and 1 <= phase.epochs <= MOST_EPOCHS
        expect(fits, f"{answer}, a phase has {phase.epochs!r} epochs", do="keep them within 1 and 10,000")


def rates_are_positive(subject: StrategySubject) -> None:
    """Learning rates are finite and positive: the head's always, the trunk's where stages move."""
    for answer, phase, _ in subject.phases():
        rates = (phase.head_lr, phase.trunk_lr) if phase.trainable else (phase.head_lr,)
        fits = all(math.isfinite(rate) and rate > 0.0 for rate in rates)
        expect(fits, f"{answer}, a phase has the learning rates {rates}", do="keep them above 0, and finite")


def moves_what_there_is(subject: StrategySubject) -> None:
    """A phase moves from none to all of the stages up to the cut."""
    for answer, phase, kept in subject.phases():
        fits = type(phase.trainable) is int and 0 <= phase.trainable <= kept
        expect(fits, f"{answer}, a phase moves {phase.trainable!r} of {kept}", do="bound it by len(stages)")


def restarts_what_moves(subject: StrategySubject) -> None:
    """Only stages that move begin from random weights: others would stay random."""
    for answer, phase, _ in subject.phases():
        fits = type(phase.reinit) is int and 0 <= phase.reinit <= phase.trainable
        wrong = f"{answer}, a phase restarts {phase.reinit!r} stages and moves {phase.trainable}"
        expect(fits, wrong, do="restart no more than you move")


def decay_is_a_factor(subject: StrategySubject) -> None:
    """The decay of the learning rate from stage to stage lies in (0, 1]."""
    for answer, phase, _ in subject.phases():
        fits = 0.0 < phase.lr_decay <= 1.0
        expect(fits, f"{answer}, a phase has the decay {phase.lr_decay!r}", do="keep it above 0, and 1 at most")


SUBJECT = StrategySubject
