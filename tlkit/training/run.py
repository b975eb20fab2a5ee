"""From a folder of images to a bundle.

The trunk is exported first, and the head is fitted on the features that the exported graph produces: what is trained
on is what is deployed (design, idea 4). Where stages move, the trunk that comes of it is exported again, and the head
is fitted on its features, and all that the bundle says is measured on them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from tlkit.data import dataset as folder
from tlkit.errors import DataError
from tlkit.graph import trace
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Progress, silent
from tlkit.training.checkpoint import Checkpoints
from tlkit.training.config import Plan, RunOptions, TrainingConfig, facts
from tlkit.training.device import Device, DeviceOptions, place, processes
from tlkit.training.heads import refit, solve_or_fit
from tlkit.training.history import LOG, Watch
from tlkit.training.phases import check_phases, most_moving
from tlkit.training.result import TrainingResult, write
from tlkit.training.run_directory import check_unfinished, run_directory
from tlkit.training.trainer import Setting
from tlkit.training.tune import Store, tune
from tlkit.util import files


def train(
    source: Path, out: Path, recipe: TrainingConfig, progress: Progress = silent, how: RunOptions | None = None
) -> TrainingResult:
    """Train and write the bundle `out`; of the processes that torchrun starts the first does, and the others exit.

    Where the loss ended as no number, the bundle holds the best weights before that, and then a DataError is raised.
    """
    how = replace(how or RunOptions(), progress=progress)
    is_main_process = place()[0] == 0
    if is_main_process:
        files.check_new(out)
        files.check_writable(out)
    else:
        how = replace(how, progress=silent, warn=lambda _warning: None)
    dataset = folder.read(source, val=recipe.val)
    torch.manual_seed(recipe.seed)
    preprocessing = None if recipe.size is None else trunks.resized(recipe.backbone, recipe.size)
    whole = trunks.build(recipe.backbone, preprocessing=preprocessing)
    known = facts(dataset)
    cut = trunks.check_cut(recipe.cut or recipe.strategy.cut(whole.names, known), whole.names)
    trunk = whole.upto(cut)
    phases = tuple(recipe.strategy.phases(trunk.names, known))
    check_phases(phases, trunk.names)
    plan = Plan(source, out, recipe, dataset, phases, whole, trunk)
    if not most_moving(phases):
        if not is_main_process:
            sys.exit()  # there is nothing to share
        return _whole(_train_head(plan, how))
    files.check_new(out)  # in every process: those that go on would wait for one that does not
    check_unfinished(out, resume=how.resume)
    machine = Device(how.choice)
    with processes(machine):
        trained = _train_trunk(plan, how, machine)
    return _whole(trained)


def _whole(trained: TrainingResult) -> TrainingResult:
    """What was trained, unless it ended before its time."""
    if trained.diverged is None:
        return trained
    what = f"{trained.diverged}; the bundle holds the best weights before that"
    raise DataError(what, file=trained.bundle, do="train again with smaller learning rates")


def _train_head(plan: Plan, how: RunOptions) -> TrainingResult:
    """The head alone, on the features of the trunk as it is."""
    features = plan.extract(plan.whole, how.progress("features", len(plan.samples)))
    train_set, val_set = plan.splits(features)
    watch = Watch(how.progress, phases=len(plan.phases), board=how.tensorboard)
    setting = Setting(plan.recipe.seed, watch)
    head, fitted = solve_or_fit(
        plan.recipe.head, plan.phases, train_set.features, val_set.features, len(plan.dataset.labels), setting
    )
    trained = write(plan, features, val_set.features, head, fitted, (), watch.lines, {})
    trace.cut_stage_graph(plan.whole, trained.cut)
    return trained


def _train_trunk(plan: Plan, how: RunOptions, machine: Device) -> TrainingResult:
    """The head and stages of the trunk."""
    recipe, phases = plan.recipe, plan.phases
    head = recipe.head.module(plan.trunk.width, len(plan.dataset.labels))  # one that can't learn is refused at once
    if not machine.is_main_process:
        machine.barrier()  # the first process fills the cache of features
    features = plan.extract(plan.whole, how.progress("features", len(plan.samples)))
    if machine.is_main_process:
        machine.barrier()
    train_set, val_set = plan.splits(features)
    begun_with = plan.begun_with(features, machine)
    with run_directory(plan.out, begun_with, resume=how.resume, is_main_process=machine.is_main_process) as work:
        log, board = (work / LOG, how.tensorboard) if machine.is_main_process else (None, None)
        machine.barrier()
        setting = Setting(
            recipe.seed,
            Watch(how.progress, phases=len(phases), log=log, board=board),
            machine,
            Checkpoints(work, warn=how.warn, seconds=how.checkpoint_every),
        )
        store = Store(work if recipe.cache else None, recipe.views)
        fitted, changed = tune(plan.trunk, head, phases, recipe.backbone, train_set, val_set, store, setting)
        if not machine.is_main_process:
            sys.exit()
        moved = plan.extract(plan.trunk, how.progress("features of the moved trunk", len(plan.samples)))
        features = replace(moved, decoded=features.decoded)
        train_set, val_set = plan.splits(features)
        if recipe.refit:
            classes = len(plan.dataset.labels)
            head, more = refit(recipe.head, head, train_set.features, val_set.features, classes, recipe.seed)
            fitted.history.extend(more)
        lines, conditions = setting.watch.lines, plan.conditions(machine)
        return write(plan, features, val_set.features, head, fitted, changed, lines, conditions)


__all__ = ["DeviceOptions", "Progress", "RunOptions", "TrainingConfig", "TrainingResult", "silent", "train"]
