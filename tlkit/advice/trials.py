"""Short trainings that settle what evidence from frozen features can't: whether the trunk had better move."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from tlkit.advice.domain_shift import Likeness
from tlkit.advice.parts import run
from tlkit.advice.recommendation import EPOCHS, Recommendation, available, epoch_seconds
from tlkit.advice.run import Advice, Question
from tlkit.plugin.contract import Head, Progress, Strategy, silent
from tlkit.plugin.options import configure
from tlkit.training.config import RunOptions, TrainingConfig, facts
from tlkit.training.result import TrainingResult
from tlkit.training.run_directory import once
from tlkit.util.statistics import paired_difference

TRIED = ("partial", "probe-then-tune")  # the cheapest that moves the trunk, and the one that usually goes furthest
FEWEST_EPOCHS = 2
HALF = 0.5  # of the budget, for each


def recipe(question: Question, recommendation: Recommendation) -> TrainingConfig:
    """How to train what is recommended, with the options that go with it."""
    backbone = next(each for each in question.backbones if each.name == recommendation.backbone)
    head: Head = next(each for each in question.heads if each.name == recommendation.head)
    options = {name.removeprefix("strategy."): value for name, value in recommendation.settings.items()}
    chosen = configure(named(question, recommendation.strategy), options)
    return TrainingConfig(
        backbone,
        chosen,
        head,
        {component.kind: question.origin(component) for component in (backbone, chosen, head)},
        cut=recommendation.cut,
        val=question.val,
        max_bad=question.max_bad,
        seed=question.seed,
        **question.options,
    )


def named(question: Question, name: str) -> Strategy:
    """The strategy of a name that is installed."""
    return next(each for each in question.strategies if each.name == name)


def better(moved: TrainingResult, still: TrainingResult, likeness: Likeness) -> bool:
    """Whether to keep a trunk that moved, by how both do on the same validation images.

    More than the standard error of their lead decides. Within it, where few images can't tell by what is right, the
    log-loss does, which knows how right; but of data like those of the pretraining the trunk stays that is known to
    serve them.
    """
    if paired_difference(moved.right, still.right).exceeds_error:
        return True
    behind = paired_difference(still.right, moved.right).exceeds_error
    return not (behind or likeness == "alike") and moved.metrics.log_loss < still.metrics.log_loss


def try_out(
    advice: Advice,
    question: Question,
    budget: float,
    progress: Progress = silent,
    how: RunOptions | None = None,
    folder: Path | None = None,
) -> Advice:
    """The advice with trial trainings in about `budget` seconds, and a recommendation that heeds them.

    How many epochs fit depends on the machine, so what comes of a budget does too. In a `folder` all that is found out
    is kept, to be found again by a run that takes this one up.
    """
    if not advice.recommendation.sure:
        return advice
    frozen = advice.recommendation.frozen()
    with tempfile.TemporaryDirectory(prefix="tlkit-trial-") if folder is None else nullcontext(folder) as room:
        still = run(advice.source, Path(room, "frozen"), words(frozen), recipe(question, frozen), progress, how)
        trials, best, chosen = [still], still, frozen
        for name in TRIED:
            fit = partial(_epochs, advice, question, name, HALF * (budget - still.seconds))
            epochs, _ = once(Path(room, f"{name}.epochs.json"), fit)
            if not epochs:
                continue
            moved = _fitted(advice, question, name, epochs)
            trial = run(advice.source, Path(room, name), words(moved), recipe(question, moved), progress, how)
            trials.append(trial)
            if better(trial.trained, best.trained, advice.sight.shift.likeness):
                best, chosen = trial, moved
    if len(trials) == 1:
        why = f"the budget is too small to try more than frozen features: it takes {FEWEST_EPOCHS} epochs at least"
        return replace(advice, trials=[still.to_json()], recommendation=advice.recommendation.because(why))
    why = (
        f"trials: {best.what} does best on the validation images"
        if best is not still
        else "trials: no trunk that moved does better than frozen features on the validation images"
    )
    settled = replace(chosen.because(why), accuracy=best.trained.metrics.interval)
    return replace(advice, trials=[trial.to_json() for trial in trials], recommendation=settled)


def _epochs(advice: Advice, question: Question, name: str, budget: float) -> int:
    """How many epochs of a strategy fit the budget; 0 where it is not installed or too few do."""
    if name not in {each.name for each in question.strategies}:
        return 0
    if available(question.heads, question.strategies).mover is None:
        return 0
    trunk = advice.sight.trunk.upto(advice.recommendation.cut)
    trainable = named(question, name).phases(trunk.names, facts(advice.dataset))[-1].trainable
    seconds = epoch_seconds(trunk, trainable, advice.facts.images, len(advice.dataset.of("val")))
    epochs = min(EPOCHS, int(budget / seconds))
    return epochs if epochs >= FEWEST_EPOCHS else 0


def _fitted(advice: Advice, question: Question, name: str, epochs: int) -> Recommendation:
    """The recommendation to take a strategy with so many epochs."""
    strategy, head = named(question, name), available(question.heads, question.strategies).head
    return advice.recommendation.moved(strategy, head, advice.sight.trunk.names, facts(advice.dataset), epochs)


def words(recommendation: Recommendation) -> str:
    """What is trained, on one line."""
    options = "".join(f", {name.removeprefix('strategy.')} {value}" for name, value in recommendation.settings.items())
    return f"{recommendation.strategy} up to {recommendation.cut}, {recommendation.head} head{options}"
