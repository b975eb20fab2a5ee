"""Trials: whole trainings, measured on the validation images and their disturbed copies, of which the best is kept."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tlkit.advice.recommendation import Evidence, Recommendation
from tlkit.advice.selection import FineTuning, available
from tlkit.data.dataset import Sample
from tlkit.data.preprocessing import load
from tlkit.defaults import FROZEN
from tlkit.errors import DataError, UsageError
from tlkit.evaluation.disturbed import Comparison, disturbed
from tlkit.graph import trace
from tlkit.graph.compose import stage_output
from tlkit.model.bundle import open_bundle
from tlkit.model.cut import select
from tlkit.model.modules import head_logits, load_modules
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import Component, Progress, silent
from tlkit.plugin.options import configure, to_json
from tlkit.runtime.session import OnnxSession
from tlkit.training.averaging import average
from tlkit.training.blending import check_blend
from tlkit.training.config import RunOptions, TrainingConfig
from tlkit.training.result import TrainingResult
from tlkit.training.run import train
from tlkit.training.run_directory import DONE, once
from tlkit.util.files import temporary_dir
from tlkit.util.prefetch import prefetch
from tlkit.util.resources import cores

if TYPE_CHECKING:
    from tlkit.advice.run import Advice, AdviceRequest

Named = TypeVar("Named", bound=Component)

AVERAGED = 3  # trainings of the best, of which the average may be better
SIMILAR, UNTRIED = 1.0, 1.96  # standard errors to gain on data like the pretraining data; without a quick trial for it


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
    bundles: Sequence[Path] = (),
    **kept: Any,
) -> Trial:
    """Train to `out` what is recommended, with more fields of its configuration, and measure it.

    With `bundles`, which were trained like this, their average is taken instead. The result is noted beside `out` and
    found there by a later run; an interrupted training is resumed. The folder of `out` must not be used for anything
    else (see `training.run_directory`).
    """
    config = replace(training_config(request, recommendation), **kept)

    def trial() -> dict[str, Any]:
        shutil.rmtree(out, ignore_errors=True)  # written, but interrupted before the note
        started = time.perf_counter()
        if bundles:
            trained = average(source, out, config, bundles, progress)
        else:
            how = replace(options or RunOptions(), resume=True, announce=False)
            trained = train(source, out, config, progress, how)
        seconds = time.perf_counter() - started
        arrays = {"correct": trained.correct.tolist(), "truth": trained.truth.tolist()}
        return {"trained": trained.to_json(), **arrays, "seconds": seconds}

    known, fresh = once(out.with_name(f"{out.name}{DONE}"), trial)
    trained = TrainingResult.from_json(known["trained"], known["correct"], known["truth"], out)
    return Trial(name_of(recommendation), trained if fresh else replace(trained, decoded=0), known["seconds"])


def training_config(request: AdviceRequest, recommendation: Recommendation) -> TrainingConfig:
    """Return the configuration of the recommended training."""
    backbone = named(request.backbones, recommendation.backbone)
    head = configure(named(request.heads, recommendation.head), recommendation.head_settings)
    settings = {name.removeprefix("strategy."): value for name, value in recommendation.settings.items()}
    strategy = configure(named(request.strategies, recommendation.strategy), settings)
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


def named(components: Sequence[Named], name: str) -> Named:
    """Return the installed component of a name."""
    return next(each for each in components if each.name == name)


def name_of(recommendation: Recommendation) -> str:
    """Return what is trained, on one line."""
    options = "".join(f", {name.removeprefix('strategy.')} {value}" for name, value in recommendation.settings.items())
    return f"{recommendation.strategy} up to {recommendation.cut}, {recommendation.head} head{options}"


def margin_for(evidence: Evidence, request: AdviceRequest, errors: float) -> float:
    """Return by how many standard errors fine-tuning must gain: none where it mostly does.

    It often loses on data similar to the pretraining data of which frozen features misclassify little.
    """
    little = evidence.error <= request.policy.fine_tuning.min_error_small_similar
    return errors if little and evidence.analysis.shift.domain == "similar" else 0.0


def compared(
    request: AdviceRequest,
    samples: Sequence[Sample],
    frozen: TrainingResult,
    fine_tuned: TrainingResult,
) -> Comparison:
    """Return the comparison of two bundles on validation samples and on disturbed copies of them."""
    labels, both = np.array([sample.label for sample in samples], np.int64), []
    for trained in (frozen, fine_tuned):
        bundle = open_bundle(trained.bundle)
        backbone, head = named(request.backbones, trained.backbone), named(request.heads, trained.head)
        trunk, module = load_modules(bundle, backbone, head)
        session = OnnxSession(trace.stage_graph(trunk), workers=cores())

        def logits(
            index: int, trunk: Trunk = trunk, session: OnnxSession = session, module: nn.Module = module
        ) -> NDArray[np.float32]:
            image = load(samples[index].path, trunk.preprocessing)
            outputs = [*map(stage_output, trunk.blocks)]
            blocks = list(session.run(np.stack([image, disturbed(image, index)]), outputs).values())
            widths = [block.shape[1] for block in blocks]
            return head_logits(module, select(np.concatenate(blocks, axis=1), trunk.cut, trunk.blocks, widths))

        rows = prefetch(logits, range(len(samples)), workers=cores(), ahead=2 * cores())
        both.append(np.stack(list(rows), axis=1))
    return Comparison.of(both[0], both[1], labels)


def run_trials(advice: Advice, request: AdviceRequest, budget: float, progress: Progress = silent) -> Advice:
    """Return the advice with trial trainings of about `budget` seconds, and a recommendation that follows from them.

    Every installed strategy's candidates are tried. The number of epochs that fit depends on the machine, so the result
    of a budget does too.
    """
    if advice.recommendation.inconclusive or advice.evidence is None:
        return advice
    end = time.monotonic() + budget
    plans = available(request.heads, request.strategies, advice.dataset.statistics).candidates
    with temporary_dir() as folder:
        baseline = run_trial(advice.source, folder / FROZEN, request, advice.recommendation.frozen(), progress, None)
        places = {folder / f"candidate-{number}": plan for number, plan in enumerate(plans)}
        tried, _ = Trials(request, lambda: end - time.monotonic(), progress).improve(advice, baseline, places)
    if len(tried.trials) == 1:
        reason = "the budget is too small for a trial of more than frozen features"
        return replace(tried, recommendation=advice.recommendation.with_reasons(reason))
    return tried


class _DoesNotFit(Exception):
    """A plan takes longer than its share of the budget."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Trials that look for something better in the seconds that are left.

    `keep` is called with each better one, and the advice that follows from it.
    """

    request: AdviceRequest
    left: Callable[[], float]
    progress: Progress = silent
    options: RunOptions | None = None
    keep: Callable[[Trial, Advice], object] = lambda _trial, _advice: None

    def improve(self, advice: Advice, baseline: Trial, plans: Mapping[Path, FineTuning]) -> tuple[Advice, int]:
        """Train plans whole to their places, one after the other; each is kept if it is better than the best before it.

        Returns the advice, whose recommendation is the best, and the number of plans that did not fit. Those still to
        come share the time equally: one that takes longer is trained with fewer epochs, or not at all. What is done is
        noted beside its place, for a resumed run.
        """
        if (evidence := advice.evidence) is None or not plans:
            return advice, 0
        known, asked, best, skipped = advice.dataset.statistics, advice.recommendation, baseline, 0
        installed = available(self.request.heads, self.request.strategies, known)
        trials, chosen = [baseline.to_json()], asked.frozen()
        # Those that an interrupted run began come first, in its order.
        for turn, place in enumerate(sorted(plans, key=lambda each: not was_begun(each))):
            plan, share = plans[place], self.left() / (len(plans) - turn)
            epochs = self._epochs(advice, place, plan, evidence.cut.name, share)
            if epochs is None:
                skipped += 1
                chosen = chosen.with_reasons(f"the budget is too small for {plan.strategy.name}")
                continue
            stages = advice.analysis.trunk.names
            tuned = asked.fine_tuned(plan.limited(epochs), installed.head, evidence.cut.name, stages, known)
            try:
                trial = run_trial(advice.source, place, self.request, tuned, self.progress, self.options)
            except DataError as problem:  # the images are good: the baseline was trained on them
                chosen = chosen.with_reasons(f"{name_of(tuned)} failed: {problem.what}")
                continue
            trials.append(trial.to_json())
            found = on_val = self._compared(advice, best, trial)
            if evidence.trial is not None and best is baseline and plan == installed.fine_tuning:
                found = on_val.pooled(evidence.trial)
            # Whatever else says, none takes the place of one that is better on the validation images beyond chance.
            if found.better and not on_val.worse:
                reason = f"{trial.name} is better than {best.name}: {found}"
                tuned = replace(tuned, accuracy=trial.trained.metrics.balanced_interval, reasons=chosen.reasons)
                best, chosen = trial, tuned.with_reasons(reason)
                self.keep(trial, replace(advice, trials=list(trials), recommendation=chosen))
            else:
                evident = on_val if found.better else found
                chosen = chosen.with_reasons(f"{trial.name} is not better than {best.name}: {evident}")
        return replace(advice, trials=trials, recommendation=chosen), skipped

    def average(self, advice: Advice, best: Trial) -> Advice:
        """Train the best again with other seeds, and keep the average of all if it is better than the best alone.

        Returns the advice that follows; as it was if the trunk can't be averaged, or the time is too short.
        """
        request, chosen, place = self.request, advice.recommendation, best.trained.bundle
        config, mean = training_config(request, chosen), place.with_name(f"{place.name}-average")
        phases = config.strategy.phases(advice.analysis.trunk.upto(chosen.cut).names, advice.dataset.statistics)

        def fits() -> int:
            if self.left() < AVERAGED * best.seconds:  # the last share is for the average and its comparison
                raise _DoesNotFit
            return AVERAGED

        try:
            check_blend(0.5, config.head, phases, refit=config.refit)
            bundles = [
                place.with_name(f"{place.name}-{number}") for number in range(2, 1 + once(_limit(mean), fits)[0])
            ]
        except (UsageError, _DoesNotFit):
            return advice
        self.progress(f"the average of {AVERAGED} such trainings may be better", 0)
        for number, bundle in enumerate(bundles, start=1):
            other = replace(request, seed=(request.seed + number) % 2**32)
            run_trial(advice.source, bundle, other, chosen, self.progress, self.options)
        trial = run_trial(advice.source, mean, request, chosen, self.progress, None, [place, *bundles])
        trial = replace(trial, name=f"average of {AVERAGED} with other seeds: {trial.name}")
        found = self._compared(advice, best, trial)
        better = found.better and not found.worse
        if better:
            chosen = replace(chosen, accuracy=trial.trained.metrics.balanced_interval)
        said = f"the average of {AVERAGED} trainings is {'' if better else 'not '}better than one: {found}"
        advice = replace(advice, trials=[*advice.trials, trial.to_json()], recommendation=chosen.with_reasons(said))
        if better:
            self.keep(trial, advice)
        return advice

    def _compared(self, advice: Advice, best: Trial, trial: Trial) -> Comparison:
        """Return the comparison of two trials on the validation images, as a run before found it."""
        val = advice.dataset.without(best.trained.rejected).of("val")
        # A quick trial sees more images than there are to validate on: these alone often promise what they don't keep.
        evidence = advice.evidence
        promising = evidence is not None and evidence.trial is not None and evidence.trial.better
        margin = 0.0 if evidence is None else margin_for(evidence, self.request, SIMILAR if promising else UNTRIED)

        def compare() -> dict[str, Any]:
            return asdict(compared(self.request, val, best.trained, trial.trained))

        place = trial.trained.bundle
        found = Comparison.from_json(once(place.with_name(f"{place.name}.compared.json"), compare)[0])
        return replace(found, margin=margin)

    def _epochs(self, advice: Advice, place: Path, plan: FineTuning, cut: str, seconds: float) -> int | None:
        """Return the limit of a plan's epochs with which it fits, as a run before measured it; None if it doesn't."""
        try:
            epochs: int = once(_limit(place), partial(_epochs, advice, self.request, plan, cut, seconds))[0]
        except _DoesNotFit:
            return None
        return epochs


def was_begun(place: Path) -> bool:
    """Return whether a run before began a trial, and kept its limit of epochs."""
    return _limit(place).exists()


def _limit(place: Path) -> Path:
    return place.with_name(f"{place.name}.epochs.json")


def _epochs(advice: Advice, request: AdviceRequest, candidate: FineTuning, cut: str, budget: float) -> int:
    """Return the limit of a candidate's epochs with which its phases fit the budget; raises `_DoesNotFit`.

    It is halved until they fit, so that it seldom depends on how exactly a step was measured.
    """
    policy, trunk = request.policy.fine_tuning, advice.analysis.trunk.upto(cut)
    whole = candidate.limited(policy.epochs)
    if budget == math.inf:
        return policy.epochs
    val, per_image = len(advice.dataset.of("val")), advice.analysis.seconds_per_image
    seconds = max(whole.seconds(trunk, advice.dataset.statistics, val, per_image))
    if seconds <= budget:
        return policy.epochs
    epochs = to_json(whole.strategy).get("epochs")
    while isinstance(epochs, int) and epochs // 2 >= policy.min_epochs:
        seconds *= (epochs // 2) / epochs
        epochs //= 2
        if seconds <= budget:
            return epochs
    raise _DoesNotFit
