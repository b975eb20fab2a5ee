"""Trials: short trainings that decide what evidence from frozen features can't, whether fine-tuning is better.

A quick trial fine-tunes a few of the deepest stages on cached activations, cross-validated over training images, in a
fraction of the time of a whole fine-tuning. With a budget, every candidate is trained whole instead.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tlkit.advice.backbone_analysis import stratified
from tlkit.advice.recommendation import TYPICAL_THROUGHPUT, Recommendation
from tlkit.advice.selection import FineTuning, available, best_head
from tlkit.data.dataset import Sample, folds_of, groups_of
from tlkit.data.preprocessing import load
from tlkit.defaults import FROZEN
from tlkit.evaluation.disturbed import Comparison, disturbed
from tlkit.graph import trace
from tlkit.model.bundle import open_bundle
from tlkit.model.modules import head_logits, load_modules, solve_head
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import Component, Head, Phase, Progress, silent
from tlkit.plugin.options import configure, to_json
from tlkit.plugin.phases import trainable_stages
from tlkit.runtime.session import OnnxSession
from tlkit.training.activation_cache import ActivationCache, open_cache
from tlkit.training.config import RunOptions, TrainingConfig, dataset_statistics
from tlkit.training.device import Device
from tlkit.training.freezing import Network, prepare_stages
from tlkit.training.heads import fit_head
from tlkit.training.inputs import AugmentedViews, Examples
from tlkit.training.result import TrainingResult
from tlkit.training.run import train
from tlkit.training.run_directory import DONE, once
from tlkit.training.trainer import Trainer
from tlkit.util.files import temporary_dir
from tlkit.util.prefetch import prefetch
from tlkit.util.resources import cores

if TYPE_CHECKING:
    from tlkit.advice.run import Advice, AdviceRequest

Named = TypeVar("Named", bound=Component)


TRIED_IMAGES, TRIED_FOLDS = 600, 3  # of a quick trial
TRIED_STAGES, TRIED_EPOCHS, TRIED_VIEWS = 2, 6, 2


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
    backbone = _named(request.backbones, recommendation.backbone)
    head = configure(_named(request.heads, recommendation.head), recommendation.head_settings)
    settings = {name.removeprefix("strategy."): value for name, value in recommendation.settings.items()}
    strategy = configure(_named(request.strategies, recommendation.strategy), settings)
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


def _named(components: Sequence[Named], name: str) -> Named:
    """Return the installed component of a name."""
    return next(each for each in components if each.name == name)


def name_of(recommendation: Recommendation) -> str:
    """Return what is trained, on one line."""
    options = "".join(f", {name.removeprefix('strategy.')} {value}" for name, value in recommendation.settings.items())
    return f"{recommendation.strategy} up to {recommendation.cut}, {recommendation.head} head{options}"


def compared(
    request: AdviceRequest,
    samples: Sequence[Sample],
    frozen: TrainingResult,
    fine_tuned: TrainingResult,
    *,
    strict: bool,
) -> Comparison:
    """Return the comparison of two bundles on validation samples and on disturbed copies of them.

    It is `strict` for data that is similar to the pretraining data, of which few images often promise what they don't
    keep: of two classes of insects all evidence on 100 images was for fine-tuning, which lost four points.
    """
    labels, both = np.array([sample.label for sample in samples], np.int64), []
    for trained in (frozen, fine_tuned):
        bundle = open_bundle(trained.bundle)
        backbone, head = _named(request.backbones, trained.backbone), _named(request.heads, trained.head)
        trunk, module = load_modules(bundle, backbone, head)
        session = OnnxSession(trace.stage_graph(trunk), workers=cores())

        def logits(
            index: int, trunk: Trunk = trunk, session: OnnxSession = session, module: nn.Module = module
        ) -> NDArray[np.float32]:
            image = load(samples[index].path, trunk.preprocessing)
            features = session.run(np.stack([image, disturbed(image, index)]), session.outputs[-1:])
            return head_logits(module, *features.values())

        rows = prefetch(logits, range(len(samples)), workers=cores(), ahead=2 * cores())
        both.append(np.stack(list(rows), axis=1))
    return Comparison.of(both[0], both[1], labels, strict=strict)


class _Copies(AugmentedViews):
    """The disturbed copy of each image in place of its views."""

    def decode(self, path: Path, number: int, index: int) -> NDArray[np.uint8]:
        return disturbed(load(path, self.preprocessing), index)


def quick_trial(
    advice: Advice, request: AdviceRequest, plan: FineTuning, cut: str, folder: Path, progress: Progress = silent
) -> Comparison | None:
    """Return the comparison of frozen features with a few fine-tuned stages, cross-validated over training images.

    Both end at the stage `cut`. Its best head on frozen features, and the phases of a plan with fewer epochs and
    trainable stages, see the same folds; the best epoch is chosen on the held-out images, as in any training. `folder`
    is for activations. None if the cut leaves no stage to freeze, or a fold would lack a class.
    """
    dataset, seed, known = advice.dataset, request.seed, dataset_statistics(advice.dataset)
    trunk = advice.analysis.trunk.upto(cut)
    phases = _tried(plan.strategy.phases(trunk.names, known), trunk.names)
    rehearsal = Network(nn.Identity(), copy.deepcopy(trunk))
    prepare_stages(rehearsal, phases, plan.strategy.prepare, seed)
    first = rehearsal.split(phases)[-1]
    rows = stratified(advice.labels, advice.analysis.features.usable, TRIED_IMAGES, seed)
    samples, labels = [dataset.of("train")[row] for row in rows], advice.labels[rows]
    folds, groups, classes = folds_of(samples, TRIED_FOLDS), groups_of(samples), len(dataset.labels)
    split = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(TRIED_FOLDS)]
    if not 0 < first < len(trunk.names) or any(len(np.unique(labels[fitted])) < classes for fitted, _ in split):
        return None
    features = np.ascontiguousarray(advice.analysis.features.at(cut)[rows])
    examples = Examples(features, labels, [sample.path for sample in samples], groups)
    inputs = _activations(trunk, first, examples, phases[-1], folder, seed, progress)
    best, default = best_head(advice.heads, cut), available(request.heads, request.strategies, known).head
    name, settings = (default, {}) if best is None else (best.head, best.settings)
    head: Head = configure(_named(request.heads, name), settings)
    logits = np.zeros((2, 2, len(rows), classes), np.float32)  # of (frozen, fine-tuned) for (images, copies)
    tick = progress(f"trial with {len(trunk.names) - first} trainable stages", len(rows))
    for fitted, held in split:
        train, val, copies = (replace(each, fold=part) for each, part in zip(inputs, (fitted, held, held), strict=True))
        own = None if groups is None else groups[fitted]
        solved = solve_head(head, features[fitted], labels[fitted], classes, seed, own)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            learner, tuned = (head.stand_in() or head).module(trunk.width, classes), copy.deepcopy(trunk)
        if solved is None:
            own_phases = _named(request.strategies, FROZEN).phases(trunk.names, known)
            parts = examples.rows(fitted), examples.rows(held)
            solved, _ = fit_head(copy.deepcopy(learner), own_phases, *parts, seed=seed)
        deepest = nn.Sequential(*list(trunk.stages.values())[first:], trunk.pool)
        logits[0, 0, held] = head_logits(solved, features[held])
        logits[0, 1, held] = head_logits(solved, _run(deepest, copies))
        Trainer(
            Network(learner, tuned),
            phases,
            examples.rows(fitted),
            examples.rows(held),
            seed=seed,
            backbone=advice.analysis.backbone,
            prepare=plan.strategy.prepare,
            views=TRIED_VIEWS,
            inputs=(train, val),
        ).fit()
        model = nn.Sequential(*list(tuned.stages.values())[first:], tuned.pool, learner).eval()
        logits[1, 0, held], logits[1, 1, held] = _run(model, val), _run(model, copies)
        tick(len(held))
    return Comparison.of(logits[0], logits[1], labels, strict=advice.analysis.shift.domain == "similar")


def _tried(phases: Sequence[Phase], stages: Sequence[str]) -> list[Phase]:
    """Return the phases of a quick trial: those of the head, and the last one with a few of its trainable stages."""
    last = next(phase for phase in reversed(phases) if phase.trainable)
    kept = trainable_stages(last, stages)[-TRIED_STAGES:]
    few = replace(last, trainable=kept, reinit=0, epochs=min(TRIED_EPOCHS, last.epochs), patience=0)
    return [*(phase for phase in phases if not phase.trainable), few]


def _activations(
    trunk: Trunk, first: int, examples: Examples, phase: Phase, folder: Path, seed: int, progress: Progress
) -> tuple[ActivationCache, ActivationCache, ActivationCache]:
    """Return the output of the stages before `first` for augmented views, for the images, and for disturbed copies."""
    frozen = nn.Sequential(trunk.normalize, *list(trunk.stages.values())[:first]).eval()
    views = AugmentedViews.from_phase(phase, trunk.preprocessing, seed, TRIED_VIEWS)
    plain = AugmentedViews(trunk.preprocessing, seed)
    stages = trunk.upto(trunk.names[first - 1])
    train, val = open_cache(folder, stages, frozen, (examples, views), (examples, plain), Device(), progress)
    return train, val, replace(val, split="copies", views=_Copies(trunk.preprocessing, seed), opened={})


def _run(model: nn.Module, inputs: ActivationCache) -> NDArray[np.float32]:
    """Return the output of a module for each image of a fold."""
    rows = np.arange(len(inputs.labels))
    with torch.inference_mode():
        parts = [model(maps) for maps in inputs.batches(np.split(rows, range(64, len(rows), 64)), 0)]
    output: NDArray[np.float32] = torch.cat(parts).numpy()
    return output


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
    if advice.recommendation.inconclusive or advice.evidence is None:
        return advice
    cut = advice.evidence.cut.name
    frozen, known = advice.recommendation.frozen(), dataset_statistics(advice.dataset)
    installed = available(request.heads, request.strategies, known)
    strict = advice.analysis.shift.domain == "similar"
    with temporary_dir() if folder is None else nullcontext(folder) as place:
        baseline = run_trial(advice.source, Path(place, FROZEN), request, frozen, progress, options)
        trials, best, chosen = [baseline], baseline, frozen
        val = advice.dataset.without(baseline.trained.rejected).of("val")
        for number, candidate in enumerate(installed.candidates):
            left = budget - sum(trial.seconds for trial in trials)
            share = left / (len(installed.candidates) - number)
            name = f"candidate-{number + 1}"
            fit = partial(_epochs, advice, request, candidate, cut, share)
            epochs, _ = once(Path(place, f"{name}.epochs.json"), fit)
            if epochs is None:
                continue
            plan, stages = candidate.limited(epochs), advice.analysis.trunk.names
            tuned = advice.recommendation.fine_tuned(plan, installed.head, cut, stages, known)
            trials.append(run_trial(advice.source, Path(place, name), request, tuned, progress, options))
            if compared(request, val, best.trained, trials[-1].trained, strict=strict).better:
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


def _epochs(advice: Advice, request: AdviceRequest, candidate: FineTuning, cut: str, budget: float) -> int | None:
    """Return the limit of a candidate's epochs with which its phases fit the budget; None if they don't."""
    policy, trunk = request.policy.fine_tuning, advice.analysis.trunk.upto(cut)
    whole = candidate.limited(policy.epochs)
    per_image = 1 / (advice.analysis.throughput or TYPICAL_THROUGHPUT)
    seconds = max(whole.seconds(trunk, dataset_statistics(advice.dataset), len(advice.dataset.of("val")), per_image))
    if seconds <= budget:
        return policy.epochs
    own = to_json(whole.strategy).get("epochs")
    epochs = int(own * budget / seconds) if isinstance(own, int) else 0
    return epochs if epochs >= policy.min_epochs else None
