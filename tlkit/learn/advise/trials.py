"""Short trainings that settle what evidence from frozen features can't: whether the trunk had better move."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tlkit.deploy.progress import Progress, silent
from tlkit.learn.advise.advice import Advice, Question
from tlkit.learn.advise.choose import paired
from tlkit.learn.advise.recommend import EPOCHS, Recommendation, epoch_seconds, offered
from tlkit.learn.plan import How, Recipe, facts
from tlkit.learn.result import Trained
from tlkit.learn.train import train
from tlkit.plugin.contract import Head, Strategy
from tlkit.plugin.settings import configure

TRIED = ("partial", "probe-then-tune")  # the cheapest that moves the trunk, and the one that usually goes furthest
FEWEST_EPOCHS = 2
HALF = 0.5  # of the budget, for each


@dataclass(frozen=True, slots=True)
class Trial:
    """One training, measured on the validation images: `right` `(images,)`."""

    what: str
    trained: Trained
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {"what": self.what, "accuracy": self.trained.scores.accuracy, "seconds": self.seconds}


def recipe(question: Question, recommendation: Recommendation, strategy: Strategy | None = None) -> Recipe:
    """How to train what is recommended; with another strategy than that, if one is given."""
    backbone = next(each for each in question.backbones if each.name == recommendation.backbone)
    head: Head = next(each for each in question.heads if each.name == recommendation.head)
    chosen = strategy or named(question, recommendation.strategy)
    return Recipe(
        backbone,
        chosen,
        head,
        {offer.kind: question.origin(offer) for offer in (backbone, chosen, head)},
        cut=recommendation.cut,
        val=question.val,
        max_bad=question.max_bad,
        seed=question.seed,
        **question.options,
    )


def named(question: Question, name: str) -> Strategy:
    """The strategy of a name that is on offer."""
    return next(each for each in question.strategies if each.name == name)


def run(source: Path, out: Path, what: str, recipe: Recipe, progress: Progress, how: How | None = None) -> Trial:
    """Train to `out` and measure."""
    started = time.perf_counter()
    trained = train(source, out, recipe, progress, how)
    return Trial(what, trained, time.perf_counter() - started)


def ahead(one: Trained, other: Trained) -> bool:
    """Whether one is ahead of the other on the same validation images by more than the standard error of that."""
    return paired(one.right, other.right).sure


def try_out(
    advice: Advice, question: Question, budget: float, progress: Progress = silent, how: How | None = None
) -> Advice:
    """The advice with trial trainings in about `budget` seconds, and a recommendation that heeds them.

    How many epochs fit depends on the machine, so what comes of a budget does too.
    """
    if not advice.recommendation.sure:
        return advice
    frozen = advice.recommendation.frozen()
    with tempfile.TemporaryDirectory(prefix="tlkit-trial-") as room:
        still = run(advice.source, Path(room, "frozen"), words(frozen), recipe(question, frozen), progress, how)
        trials, best, chosen = [still], still, frozen
        for name in TRIED:
            fitted = _fitted(advice, question, name, HALF * (budget - still.seconds))
            if fitted is None:
                continue
            strategy, moved = fitted
            trial = run(advice.source, Path(room, name), words(moved), recipe(question, moved, strategy), progress, how)
            trials.append(trial)
            if ahead(trial.trained, best.trained):
                best, chosen = trial, moved
    if len(trials) == 1:
        why = f"the budget is too small to try more than frozen features: it takes {FEWEST_EPOCHS} epochs at least"
        return replace(advice, trials=[still.to_json()], recommendation=advice.recommendation.because(why))
    why = (
        f"trials: {best.what} is ahead on the validation images"
        if best is not still
        else ("trials: no trunk that moved is ahead of frozen features on the validation images")
    )
    settled = replace(chosen.because(why), accuracy=best.trained.scores.interval)
    return replace(advice, trials=[trial.to_json() for trial in trials], recommendation=settled)


def _fitted(advice: Advice, question: Question, name: str, budget: float) -> tuple[Strategy, Recommendation] | None:
    """A strategy with as many epochs as fit the budget; None where it is not on offer or too few do."""
    strategy = next((each for each in question.strategies if each.name == name), None)
    offers = offered(question.heads, question.strategies)
    if strategy is None or offers.mover is None:
        return None
    trunk, known = advice.sight.trunk, facts(advice.dataset)
    moving = strategy.phases(trunk.names, known)[-1].moving
    epochs = min(EPOCHS, int(budget / epoch_seconds(trunk, moving, advice.facts.images, len(advice.dataset.of("val")))))
    if epochs < FEWEST_EPOCHS:
        return None
    moved = advice.recommendation.moved(strategy, offers.head, trunk.names, known, epochs)
    return configure(strategy, {"epochs": epochs}), moved


def words(recommendation: Recommendation) -> str:
    """What is trained, on one line."""
    options = "".join(f", {name.removeprefix('strategy.')} {value}" for name, value in recommendation.settings.items())
    return f"{recommendation.strategy} up to {recommendation.cut}, {recommendation.head} head{options}"
