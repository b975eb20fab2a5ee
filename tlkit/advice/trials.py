"""Trials: short trainings that decide what evidence from frozen features can't, whether fine-tuning is better."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.advice.recommendation import FineTuning, Recommendation, available
from tlkit.defaults import FROZEN
from tlkit.plugin.contract import Head, Progress, Strategy, silent
from tlkit.plugin.options import configure, to_json
from tlkit.training.config import RunOptions, TrainingConfig, dataset_statistics
from tlkit.training.result import TrainingResult
from tlkit.training.run import train
from tlkit.training.run_directory import DONE, once
from tlkit.util.files import temporary_dir
from tlkit.util.statistics import paired_difference

if TYPE_CHECKING:
    from tlkit.advice.domain_shift import Domain
    from tlkit.advice.run import Advice, AdviceRequest


@dataclass(frozen=True, slots=True)
class Trial:
    """One training, measured on the validation images."""

    name: str
    trained: TrainingResult
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "accuracy": self.trained.metrics.accuracy, "seconds": self.seconds}


def run_trial(
    source: Path,
    out: Path,
    request: AdviceRequest,
    recommendation: Recommendation,
    progress: Progress,
    options: RunOptions | None,
    **kept: Any,
) -> Trial:
    """Train to `out` what is recommended, with more fields of its configuration, and measure it.

    The result is noted beside `out` and found there by a later run; an interrupted training is resumed. The folder of
    `out` must not be used for anything else (see `training.run_directory`).
    """
    config = replace(training_config(request, recommendation), **kept)

    def trial() -> dict[str, Any]:
        shutil.rmtree(out, ignore_errors=True)  # written, but interrupted before the note
        started = time.perf_counter()
        trained = train(source, out, config, progress, replace(options or RunOptions(), resume=True, announce=False))
        seconds = time.perf_counter() - started
        arrays = {"correct": trained.correct.tolist(), "truth": trained.truth.tolist()}
        return {"trained": trained.to_json(), **arrays, "seconds": seconds}

    known, fresh = once(out.with_name(f"{out.name}{DONE}"), trial)
    trained = TrainingResult.from_json(known["trained"], known["correct"], known["truth"], out)
    return Trial(name_of(recommendation), trained if fresh else replace(trained, decoded=0), known["seconds"])


def training_config(request: AdviceRequest, recommendation: Recommendation) -> TrainingConfig:
    """Return the configuration of the recommended training."""
    backbone = next(each for each in request.backbones if each.name == recommendation.backbone)
    installed: Head = next(each for each in request.heads if each.name == recommendation.head)
    head = configure(installed, recommendation.head_settings)
    settings = {name.removeprefix("strategy."): value for name, value in recommendation.settings.items()}
    strategy = configure(_strategy(request, recommendation.strategy), settings)
    return TrainingConfig(
        backbone,
        strategy,
        head,
        {component.kind: request.origin(component) for component in (backbone, strategy, head)},
        cut=recommendation.cut,
        val=request.val,
        group=request.group,
        max_bad=request.max_bad,
        seed=request.seed,
        detectors=request.detectors,
        **request.options,
    )


def _strategy(request: AdviceRequest, name: str) -> Strategy:
    """Return the installed strategy of a name."""
    return next(each for each in request.strategies if each.name == name)


def name_of(recommendation: Recommendation) -> str:
    """Return what is trained, on one line."""
    options = "".join(f", {name.removeprefix('strategy.')} {value}" for name, value in recommendation.settings.items())
    return f"{recommendation.strategy} up to {recommendation.cut}, {recommendation.head} head{options}"


def is_better(fine_tuned: TrainingResult, frozen: TrainingResult, domain: Domain) -> bool:
    """Return True if a fine-tuned trunk is better than a frozen one, on the same validation images.

    A difference in balanced accuracy of more than its standard error decides. Within it, where few images can't tell by
    accuracy, the log loss does, as it knows by how much; but for data similar to the pretraining data the frozen trunk
    stays, which is known to serve them.
    """
    if paired_difference(fine_tuned.correct, frozen.correct, frozen.truth).exceeds_error:
        return True
    worse = paired_difference(frozen.correct, fine_tuned.correct, frozen.truth).exceeds_error
    return not (worse or domain == "similar") and fine_tuned.metrics.log_loss < frozen.metrics.log_loss


def run_trials(
    advice: Advice,
    request: AdviceRequest,
    budget: float,
    progress: Progress = silent,
    options: RunOptions | None = None,
    folder: Path | None = None,
) -> Advice:
    """Return the advice with trial trainings of about `budget` seconds, and a recommendation that follows from them.

    Every installed strategy's candidates are tried; those still to come share what is left of the budget equally.

    The number of epochs that fit depends on the machine, so the result of a budget does too. In a `folder` all results
    are kept, to be found again by a resumed run.
    """
    if advice.recommendation.inconclusive:
        return advice
    frozen, known = advice.recommendation.frozen(), dataset_statistics(advice.dataset)
    installed = available(request.heads, request.strategies, known)
    with temporary_dir() if folder is None else nullcontext(folder) as place:
        baseline = run_trial(advice.source, Path(place, FROZEN), request, frozen, progress, options)
        trials, best, chosen = [baseline], baseline, frozen
        for number, candidate in enumerate(installed.candidates):
            left = budget - sum(trial.seconds for trial in trials)
            share = left / (len(installed.candidates) - number)
            name = f"candidate-{number + 1}"
            epochs, _ = once(Path(place, f"{name}.epochs.json"), partial(_epochs, advice, request, candidate, share))
            if epochs is None:
                continue
            plan, stages = candidate.limited(epochs), advice.analysis.trunk.names
            tuned = advice.recommendation.fine_tuned(plan, installed.head, stages, known)
            trials.append(run_trial(advice.source, Path(place, name), request, tuned, progress, options))
            if is_better(trials[-1].trained, best.trained, advice.analysis.shift.domain):
                best, chosen = trials[-1], tuned
    if len(trials) == 1:
        fewest = request.policy.fine_tuning.min_epochs
        reason = f"the budget is too small for a trial of more than frozen features: it takes at least {fewest} epochs"
        settled = advice.recommendation.with_reasons(reason)
    else:
        winner = "no fine-tuned trunk is better than frozen features" if best is baseline else f"{best.name} is best"
        settled = chosen.with_reasons(f"trials: {winner} on the validation images")
        settled = replace(settled, accuracy=best.trained.metrics.balanced_interval)
    return replace(advice, trials=[trial.to_json() for trial in trials], recommendation=settled)


def _epochs(advice: Advice, request: AdviceRequest, candidate: FineTuning, budget: float) -> int | None:
    """Return the limit of a candidate's epochs with which its phases fit the budget; None if they don't."""
    policy, trunk = request.policy.fine_tuning, advice.analysis.trunk.upto(advice.recommendation.cut)
    whole = candidate.limited(policy.epochs)
    seconds = whole.seconds(trunk, dataset_statistics(advice.dataset), len(advice.dataset.of("val")))
    if seconds <= budget:
        return policy.epochs
    own = to_json(whole.strategy).get("epochs")
    epochs = int(own * budget / seconds) if isinstance(own, int) else 0
    return epochs if epochs >= policy.min_epochs else None
