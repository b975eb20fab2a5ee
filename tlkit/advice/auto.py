"""`--strategy auto`: advise, then do it; a trunk that moved is kept only if it does better than the best that did not.

What takes long, trial trainings and those of a trunk that moves, is done in the folder that the training of the bundle
has beside it (see `learn.work`), part by part, so that one that was killed is taken up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlkit.advice.parts import run
from tlkit.advice.run import Advice, Question, advise
from tlkit.advice.trials import better, recipe, try_out, words
from tlkit.errors import DataError, UsageError
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Component, Progress, silent
from tlkit.plugin.options import to_json
from tlkit.training.config import RunOptions, TrainingConfig
from tlkit.training.device import Device
from tlkit.training.result import TrainingResult
from tlkit.training.run import train
from tlkit.training.run_directory import check_unfinished, folder_of, run_directory
from tlkit.util import files
from tlkit.version import __version__

NAME = "auto"
TRIALS, FROZEN, MOVED = "trials", "frozen", "moved"  # the parts of it, in its folder


def train_auto(
    source: Path,
    out: Path,
    question: Question,
    how: RunOptions | None = None,
    budget: float | None = None,
    progress: Progress = silent,
) -> tuple[TrainingResult, Advice]:
    """Train what the advice recommends, and write the bundle `out` with the advice in it.

    Without a budget the same data and seed give the same bundle.
    """
    how = how or RunOptions()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        what = f"{NAME} compares and decides in one process, not under torchrun"
        raise UsageError(what, do="ask `tlkit advise` first, and give torchrun the --strategy that it names")
    files.check_new(out)
    files.check_writable(out)
    check_unfinished(out, resume=how.resume)
    if question.cut is not None:
        trunks.check_cut(question.cut, trunks.build(question.backbones[0]).names)
    advice = advise(source, question, progress, learnable=True)
    moves = advice.recommendation.strategy != "frozen"
    if not (moves or budget is not None or (how.resume and folder_of(out).exists())):
        return _train(out, question, advice, progress, how), advice
    with run_directory(
        out, _begun_with(advice, question, how, budget), resume=how.resume, is_main_process=True
    ) as folder:
        return _compare(out, folder, question, advice, budget, progress, how)


def _compare(
    out: Path,
    folder: Path,
    question: Question,
    advice: Advice,
    budget: float | None,
    progress: Progress,
    how: RunOptions,
) -> tuple[TrainingResult, Advice]:
    """Trials, where there is a budget for them; then frozen and moved, if the trunk is to move, and the better one."""
    aside = replace(how, tensorboard=None)  # its curves are those of what is kept, if that moves
    if budget is not None:
        advice = try_out(advice, question, budget, progress, aside, folder / TRIALS)
    chosen = advice.recommendation
    if chosen.strategy == "frozen":
        return _train(out, question, advice, progress, how), advice
    frozen = chosen.frozen()
    still = run(advice.source, folder / FROZEN, words(frozen), recipe(question, frozen), progress, aside)
    seen = replace(advice, trials=[*advice.trials, still.to_json()])
    try:
        moved = run(advice.source, folder / MOVED, words(chosen), _whole_recipe(question, seen), progress, how)
    except DataError as problem:  # the images are good: frozen features were just trained on them
        why = f"moving the trunk came to nothing: {problem.what}"
    else:
        if better(moved.trained, still.trained, advice.sight.shift.likeness):
            os.rename(folder / MOVED, out)
            return _whole(replace(moved.trained, bundle=out), seen, still.trained), seen
        why = "the trunk that moved does no better than frozen features on the validation images"
        lost = {"what": moved.what, "accuracy": moved.trained.metrics.accuracy}
        seen = replace(seen, trials=[*seen.trials, lost])
    seen = replace(seen, recommendation=frozen.because(why))
    return _train(out, question, seen, progress, how, still.trained), seen


def _train(
    out: Path, question: Question, advice: Advice, progress: Progress, how: RunOptions, *before: TrainingResult
) -> TrainingResult:
    """Train what is recommended."""
    return _whole(train(advice.source, out, _whole_recipe(question, advice), progress, how), advice, *before)


def _whole_recipe(question: Question, advice: Advice) -> TrainingConfig:
    """How to train what is recommended, with the advice for the bundle."""
    return replace(recipe(question, advice.recommendation), advice=_kept(advice))


def _whole(trained: TrainingResult, advice: Advice, *before: TrainingResult) -> TrainingResult:
    """The images that were decoded for the advice, and for what was trained before, count as decoded for it."""
    others = advice.sight.features.decoded + sum(each.decoded for each in before)
    return replace(trained, decoded=trained.decoded + others)


def _kept(advice: Advice) -> Mapping[str, Any]:
    """What the bundle keeps: all but times, which would make each bundle another, and where the data are."""
    content = advice.to_json()
    del content["source"], content["rejected"]
    content["recommendation"].pop("seconds")
    for part in (*content["heads"], *content["trials"]):
        part.pop("seconds", None)
    return content


def _begun_with(advice: Advice, question: Question, how: RunOptions, budget: float | None) -> dict[str, Any]:
    """All that decides the outcome, as JSON: what a run that is taken up must have been begun with."""
    machine = Device(how.choice)  # refused at once where it can't be had

    def named(components: tuple[Component, ...]) -> dict[str, Any]:
        return {component.name: to_json(component) for component in components}

    return {
        "tlkit": __version__,
        "strategy": NAME,
        "budget": budget,
        "backbone": named(tuple(question.backbones)),
        "head": named(tuple(question.heads)),
        "strategies": named(tuple(question.strategies)),
        **{name: getattr(question, name) for name in ("cut", "val", "max_bad", "seed")},
        **question.options,
        "device": machine.device.type,
        "precision": str(machine.format).removeprefix("torch."),
        "images": _images(advice),
    }


def _images(advice: Advice) -> dict[str, str]:
    """Split, label and content of each image; only those of train were read for the advice."""
    read = zip(advice.dataset.of("train"), advice.sight.features.sha256, strict=True)
    known = {sample.name: sha256 for sample, sha256 in read}
    labels = advice.dataset.labels
    return {
        sample.name: f"{sample.split} {labels[sample.label]} {(known.get(sample.name) or _hash(sample.path))[:16]}"
        for sample in advice.dataset.samples
        if sample.split != "test"
    }


def _hash(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError:
        return "not readable"
