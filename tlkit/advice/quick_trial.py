"""Quick trials, which decide what evidence from frozen features can't: whether fine-tuning is worth its time.

A few of the deepest stages are fine-tuned on cached activations, cross-validated over training images, in a fraction of
the time of a whole fine-tuning.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tlkit.advice.backbone_analysis import stratified
from tlkit.advice.selection import FineTuning, available
from tlkit.advice.trials import named
from tlkit.data.dataset import folds_of, groups_of
from tlkit.data.preprocessing import load
from tlkit.defaults import FROZEN
from tlkit.evaluation.disturbed import Comparison, disturbed
from tlkit.model.modules import head_logits, solve_head
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import Head, Phase, Progress, silent
from tlkit.plugin.phases import trainable_stages
from tlkit.training.activation_cache import ActivationCache, open_cache
from tlkit.training.device import Device
from tlkit.training.freezing import Network, prepare_stages
from tlkit.training.heads import fit_head, new_module
from tlkit.training.history import Monitor
from tlkit.training.inputs import AugmentedViews, Examples
from tlkit.training.trainer import Trainer

if TYPE_CHECKING:
    from tlkit.advice.run import Advice, AdviceRequest

TRIED_IMAGES, TRIED_FOLDS, TRIED_VIEWS = 600, 3, 2
TRIED_STAGES, TRIED_EPOCHS = 2, 6
FEW, FEW_STAGES, FEW_EPOCHS = 200, 4, 10  # up to so many images: of fewer steps a trial says little


class _Copies(AugmentedViews):
    """The disturbed copy of each image in place of its views."""

    def decode(self, path: Path, number: int, index: int) -> NDArray[np.uint8]:
        return disturbed(load(path, self.preprocessing), index)


def quick_trial(
    advice: Advice, request: AdviceRequest, plan: FineTuning, cut: str, folder: Path, progress: Progress = silent
) -> Comparison | None:
    """Return the comparison of frozen features with a few fine-tuned stages, cross-validated over training images.

    Both end at the stage `cut`, under the head of fine-tuned trunks: one found best on these images would seem better
    than it is. Frozen features, and the phases of a plan with fewer epochs and trainable stages, see the same folds.
    The best epoch is chosen on the held-out images and the head solved again, as in any training. `folder` is for
    activations. None if the cut leaves no stage to freeze, or a fold would lack a class.
    """
    dataset, seed, known = advice.dataset, request.seed, advice.dataset.statistics
    trunk = advice.analysis.trunk.upto(cut)
    rows = stratified(advice.labels, advice.analysis.features.usable, TRIED_IMAGES, seed)
    phases = _tried(plan.strategy.phases(trunk.names, known), trunk.names, len(rows))
    rehearsal = Network(nn.Identity(), copy.deepcopy(trunk))
    prepare_stages(rehearsal, phases, plan.strategy.prepare, seed)
    first = rehearsal.split(phases)[-1]
    samples, labels = [dataset.of("train")[row] for row in rows], advice.labels[rows]
    folds, groups, classes = folds_of(samples, TRIED_FOLDS), groups_of(samples), len(dataset.labels)
    split = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(TRIED_FOLDS)]
    if not 0 < first < len(trunk.names) or any(len(np.unique(labels[fitted])) < classes for fitted, _ in split):
        return None
    features = np.ascontiguousarray(advice.analysis.features.at(cut)[rows])
    examples = Examples(features, labels, [sample.path for sample in samples], groups)
    inputs = _activations(trunk, first, examples, phases[-1], folder, seed, progress)
    head: Head = named(request.heads, available(request.heads, request.strategies, known).head)
    logits = np.zeros((2, 2, len(rows), classes), np.float32)  # of (frozen, fine-tuned) for (images, copies)
    tick = progress(f"trial with {len(trunk.names) - first} trainable stages", len(rows))
    for fitted, held in split:
        train, val, copies = (replace(each, fold=part) for each, part in zip(inputs, (fitted, held, held), strict=True))
        fold = labels[fitted], classes, seed, None if groups is None else groups[fitted]
        solved = solve_head(head, features[fitted], *fold)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            learner, tuned = new_module(head.stand_in() or head, trunk.width, classes), copy.deepcopy(trunk)
        if solved is None:
            own_phases = named(request.strategies, FROZEN).phases(trunk.names, known)
            parts = examples.rows(fitted), examples.rows(held)
            solved, _ = fit_head(copy.deepcopy(learner), own_phases, *parts, seed=seed)
        Trainer(
            Network(learner, tuned),
            phases,
            examples.rows(fitted),
            examples.rows(held),
            seed=seed,
            monitor=Monitor(lambda *_: lambda *_: tick(0)),  # which ends it with the budget
            backbone=advice.analysis.backbone,
            prepare=plan.strategy.prepare,
            views=TRIED_VIEWS,
            inputs=(train, val),
        ).fit()
        again = solve_head(head, _run(tuned, first, replace(val, fold=fitted)), *fold)
        best = learner.eval() if again is None else again
        logits[0, 0, held] = head_logits(solved, features[held])
        logits[0, 1, held] = head_logits(solved, _run(trunk, first, copies))
        logits[1, 0, held] = head_logits(best, _run(tuned, first, val))
        logits[1, 1, held] = head_logits(best, _run(tuned, first, copies))
        tick(len(held))
    return Comparison.of(logits[0], logits[1], labels)


def _tried(phases: Sequence[Phase], stages: Sequence[str], images: int) -> list[Phase]:
    """Return the phases of a quick trial: those of the head, and the last one with a few of its trainable stages."""
    deepest, epochs = (FEW_STAGES, FEW_EPOCHS) if images <= FEW else (TRIED_STAGES, TRIED_EPOCHS)
    last = next(phase for phase in reversed(phases) if phase.trainable)
    kept = tuple(name for name in trainable_stages(last, stages) if name != stages[0])[-deepest:]
    few = replace(last, trainable=kept, reinit=0, epochs=min(epochs, last.epochs), patience=0)
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


def _run(trunk: Trunk, first: int, inputs: ActivationCache) -> NDArray[np.float32]:
    """Return the features of the stages from `first` on, for each image of a fold."""
    model = nn.Sequential(*list(trunk.stages.values())[first:], trunk.pool).eval()
    rows = np.arange(len(inputs.labels))
    with torch.inference_mode():
        parts = [model(maps) for maps in inputs.batches(np.split(rows, range(64, len(rows), 64)), 0)]
    output: NDArray[np.float32] = torch.cat(parts).numpy()
    return output
