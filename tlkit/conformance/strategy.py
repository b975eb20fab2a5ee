"""Checks of a strategy: as a pure function it is called for many numbers of stages and extreme statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tlkit.conformance.subject import Subject, expect, expect_none, prepared
from tlkit.plugin.contract import DatasetStatistics, Phase, Strategy
from tlkit.plugin.phases import phase_problems

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
MAX_EPOCHS = 10_000
OWN_CHECKS = ("epochs", "head_lr", "trainable", "reinit", "lr_decay")


@dataclass(frozen=True)
class Answer:
    """Result of a strategy for some stages and statistics."""

    stages: tuple[str, ...]
    info: DatasetStatistics
    cut: str
    kept: int  # stages up to the cut; all if it is none of them
    phases: Sequence[Phase]

    def __str__(self) -> str:
        return f"for {len(self.stages)} stages and {self.info}"


class StrategySubject(Subject[Strategy]):
    """Strategy under test."""

    @prepared("answers")
    def answers(self) -> list[Answer]:
        """Results for all stages and statistics."""
        return [self.ask(count, info) for count in STAGES for info in STATISTICS]

    def ask(self, count: int, info: DatasetStatistics) -> Answer:
        """Return the result for a number of stages; as in training, the phases are for the stages up to the cut."""
        stages = tuple(f"stage{number}" for number in range(1, count + 1))
        cut = self.component.cut(stages, info)
        kept = stages.index(cut) + 1 if cut in stages else count
        return Answer(stages, info, cut, kept, self.component.phases(stages[:kept], info))

    def phases(self) -> Iterator[tuple[Answer, Phase]]:
        """Yield every phase with its result."""
        return ((answer, phase) for answer in self.answers for phase in answer.phases)


def answers(subject: StrategySubject) -> None:
    """It has phases for 1 to 20 stages of any name, from one image per class to ten million images."""
    for answer in subject.answers:
        phases = answer.phases
        fits = isinstance(phases, Sequence) and len(phases) > 0 and all(isinstance(phase, Phase) for phase in phases)
        expect(fits, f"{answer}, it returns {phases!r}", do="return a tuple of one `Phase` or more")


def cut_is_a_stage(subject: StrategySubject) -> None:
    """It cuts at one of the stages."""
    for answer in subject.answers:
        expect(answer.cut in answer.stages, f"{answer}, it cuts at {answer.cut!r}", do="return one of `stages`")


def pure(subject: StrategySubject) -> None:
    """The same stages and statistics give the same result, whatever was called before."""
    for answer in reversed(subject.answers):
        again = subject.ask(len(answer.stages), answer.info)
        same = (again.cut, tuple(again.phases)) == (answer.cut, tuple(answer.phases))
        expect(same, f"{answer}, it says one thing and then another", do="depend on the arguments alone")


def leaves_its_arguments_alone(subject: StrategySubject) -> None:
    """It does not change its arguments."""
    stages = ["stem", "body", "last"]
    subject.component.cut(stages, STATISTICS[0])
    subject.component.phases(stages, STATISTICS[0])
    expect(stages == ["stem", "body", "last"], f"it changes its stages to {stages}", do="work on a copy")


def asks_for_known_fields(subject: StrategySubject) -> None:
    """Its phases and their parts are those of the contract: training refuses a subclass, whose fields it would drop."""
    for part in ("phase", "optimizer", "augmentation", "loss"):
        _check(subject, part, do="use `Phase`, `Optimizer`, `Augmentation` and `Loss` themselves, without more fields")


def epochs_are_positive(subject: StrategySubject) -> None:
    """Every phase has a whole number of epochs from 1 to ten thousand."""
    _check(subject, "epochs", do="keep them within 1 and 10,000")
    for answer, phase in subject.phases():
        expect(phase.epochs <= MAX_EPOCHS, f"{answer}, a phase has {phase.epochs} epochs", do="keep them below 10,000")


def learning_rates_are_positive(subject: StrategySubject) -> None:
    """Learning rates are finite and positive: the head's always, the trunk's if stages are trainable."""
    _check(subject, "head_lr", do="keep them above 0, and finite")


def trainable_is_in_range(subject: StrategySubject) -> None:
    """`trainable` is from 0 to the number of stages up to the cut."""
    _check(subject, "trainable", do="bound it by len(stages)")


def reinit_is_trainable(subject: StrategySubject) -> None:
    """Only trainable stages start from random weights: frozen ones would stay random."""
    _check(subject, "reinit", do="keep reinit at most trainable")


def lr_decay_is_a_factor(subject: StrategySubject) -> None:
    """`lr_decay`, the factor on the learning rate per stage, lies in (0, 1]."""
    _check(subject, "lr_decay", do="keep it above 0, and 1 at most")


def phases_can_be_trained(subject: StrategySubject) -> None:
    """Training accepts every other field of a phase, and there are no fields that it does not know."""
    for answer, phase in subject.phases():
        problems = phase_problems(phase, answer.stages[: answer.kept])
        others = [problem for name, problem in problems.items() if name not in OWN_CHECKS]
        expect_none(others, f"{answer}, a phase is refused", do="keep to the fields of `Phase` and their ranges")


def prepare_is_undone(subject: StrategySubject) -> None:
    """After training `prepare` is undone: the stages have their original modules, and compute the same when merged."""
    if type(subject.component).prepare is not Strategy.prepare:
        from tlkit.conformance.merging import STAGES as NAMES
        from tlkit.conformance.merging import check_merge

        check_merge(subject.component, subject.component.phases(NAMES, STATISTICS[2]))


def candidates_are_configurations(subject: StrategySubject) -> None:
    """Candidates are the strategy with other options, and their phases can be trained."""
    own = subject.component
    for info in STATISTICS:
        for candidate in own.candidates(info):
            same = type(candidate) is type(own) and candidate.name == own.name
            expect(same, f"for {info} its candidate is {candidate!r}", do="return `dataclasses.replace(self, …)`")
            stages = ("stem", "body", "last")
            phases = candidate.phases(stages, info)
            problems = [each for phase in phases for each in phase_problems(phase, stages).values()]
            expect_none(problems, f"for {info} a phase of its candidate is refused", do="see `Phase`")


def _check(subject: StrategySubject, field: str, *, do: str) -> None:
    """Fail if training would refuse a phase because of this field."""
    for answer, phase in subject.phases():
        problem = phase_problems(phase, answer.stages[: answer.kept]).get(field)
        expect(problem is None, f"{answer}, a phase {problem}", do=do)


SUBJECT = StrategySubject
