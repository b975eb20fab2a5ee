"""A training from a folder of images to a bundle, in order.

The trunk is exported first, and the head is fitted on the features that the exported graph produces: train on what you
deploy. If stages are fine-tuned, the new trunk is exported again, and the head and every score in the bundle come from
its features.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tlkit.data import dataset as folder
from tlkit.data.duplicates import find_duplicates
from tlkit.errors import DataError, UsageError
from tlkit.evaluation.metrics import score
from tlkit.graph import trace
from tlkit.model import trunk as trunks
from tlkit.model.cut import check_cut
from tlkit.plugin.blame import described
from tlkit.plugin.contract import Head, Progress, silent
from tlkit.runtime.features import Features
from tlkit.training.blending import alphas, blend_weights, check_blend, weights
from tlkit.training.checkpoint import Checkpoints, Tensors
from tlkit.training.config import (
    Plan,
    RunOptions,
    TrainingConfig,
    check_batches,
    check_phases,
    identical,
)
from tlkit.training.device import Device, rank_and_world_size
from tlkit.training.freezing import Network, prepare_stages
from tlkit.training.heads import head_report, new_module, probabilities, refit_head, solve, solve_or_fit
from tlkit.training.history import LOG, Line, Monitor
from tlkit.training.result import TrainingResult, write_bundle
from tlkit.training.run_directory import check_output, check_unfinished, run_directory
from tlkit.training.trainer import Trainer
from tlkit.util.resources import cores
from tlkit.util.text import listed


def train(
    source: Path,
    out: Path,
    config: TrainingConfig,
    progress: Progress = silent,
    options: RunOptions | None = None,
    *,
    within: bool = False,
) -> TrainingResult:
    """Train and write the bundle `out`; of the processes that torchrun starts the first does, and the others exit.

    `within` says that the run directory of `out` is the caller's own. If training diverges, the bundle
    holds the best weights before that, and a DataError is raised.
    """
    options = options or RunOptions()
    is_main_process = rank_and_world_size()[0] == 0
    if is_main_process:
        check_output(out, resume=within or options.resume)
    else:
        progress, options = silent, replace(options, warn=lambda _warning: None)
    torch.set_num_threads(min(torch.get_num_threads(), cores()))  # PyTorch knows no quota
    plan = make_plan(source, out, config)
    if not (within or plan.trainable):  # an interrupted training can be resumed only by one that trains stages too
        check_unfinished(out, resume=False)
    if options.announce:
        for line in (str(plan.dataset), *plan.duplicates.lines()):
            progress(line, 0)
        warn_among_images(source, out, options.warn)
    if options.strict:
        plan.duplicates.check()
    if not plan.trainable:
        if not is_main_process:
            sys.exit()  # there is nothing to share
        result = _train_head(plan, options, progress)
    else:
        check_output(out, resume=within or options.resume)  # in every process: others would wait for it
        device = Device(options.device)
        with device.process_group():
            result = _fine_tune(plan, options, device, progress)
    if result.diverged is not None:
        what = f"{result.diverged}; the bundle holds the best weights before that"
        raise DataError(what, file=result.bundle, do="train again with smaller learning rates")
    return result


def warn_among_images(source: Path, out: Path, warn: Callable[[str], object]) -> None:
    """Warn of an output inside the folder of the images."""
    if out.resolve().is_relative_to(source.resolve()):
        warn(f"{out} will lie among the images; tlkit does not read bundles as images")


def make_plan(source: Path, out: Path, config: TrainingConfig) -> Plan:
    """Read the dataset, build the trunk, and ask the strategy for cut and phases."""
    dataset = folder.read(source, val=config.val, group=config.group)
    torch.manual_seed(config.seed)
    preprocessing = None if config.size is None else trunks.resized(config.backbone, config.size)
    full_trunk = trunks.build(config.backbone, preprocessing=preprocessing)
    statistics = dataset.statistics
    cut = config.cut or config.strategy.cut(full_trunk.names, statistics)
    cut = check_cut(cut, full_trunk.names, "" if config.cut else f"{described(config.strategy)} cuts elsewhere: ")
    full_trunk = trace.traceable(full_trunk, cut)
    trunk = full_trunk.upto(cut)
    phases = tuple(config.strategy.phases(trunk.names, statistics))
    check_phases(phases, trunk.names, described(config.strategy))
    plan = Plan(source, out, config, dataset, find_duplicates(dataset), phases, full_trunk, trunk)
    if plan.trainable and len(trunk.blocks) > 1:
        what = f"the features of {listed(trunk.blocks)} are joined, and {described(config.strategy)} trains stages"
        raise UsageError(what, do="take --strategy frozen, or name one stage to cut at")
    learner = (plan.trainable and config.head.stand_in()) or config.head
    if plan.trainable or type(learner).solve is Head.solve:  # a head that can't be solved is trained by gradient
        check_batches(phases, new_module(learner, trunk.width, plan.classes), trunk)
    if plan.trainable:
        check_blend(config.blend, config.head, phases, refit=config.refit)
        rehearsal = Network(nn.Identity(), copy.deepcopy(trunk))  # parameters that don't exist are refused at once
        prepare_stages(rehearsal, phases, config.strategy.prepare, config.seed)
    return plan


def _train_head(plan: Plan, options: RunOptions, progress: Progress) -> TrainingResult:
    """Train the head alone, on the features of the original trunk."""
    config = plan.config
    plan, features = plan.read(progress("features", len(plan.samples)))
    for line in identical(features, plan.samples, plan.dataset.labels):
        options.warn(line)
    train, val = plan.examples(features)
    monitor = Monitor(progress, phases=len(plan.phases), tensorboard=options.tensorboard)
    head, fitted = solve_or_fit(config.head, plan.phases, train, val, plan.classes, seed=config.seed, monitor=monitor)
    return write_bundle(plan, features, head, fitted, monitor.lines)


def _fine_tune(plan: Plan, options: RunOptions, device: Device, progress: Progress) -> TrainingResult:
    """Train the head and the deepest stages of the trunk; then score them on the features of the new trunk."""
    config, phases = plan.config, plan.phases
    learner = config.head.stand_in() or config.head
    head = new_module(learner, plan.trunk.width, plan.classes)  # one without gradients is refused at once
    if not device.is_main_process:
        device.barrier()  # the main process fills the cache of features
    plan, features = plan.read(progress("features", len(plan.samples)))
    if device.is_main_process:
        device.barrier()
    for line in identical(features, plan.samples, plan.dataset.labels):
        options.warn(line)
    train, val = plan.examples(features)
    identity = plan.identity(features, device)
    with run_directory(plan.out, identity, resume=options.resume, is_main_process=device.is_main_process) as folder:
        log, board = (folder / LOG, options.tensorboard) if device.is_main_process else (None, None)
        device.barrier()
        monitor = Monitor(progress, phases=len(phases), log=log, tensorboard=board)
        pretrained = weights(plan.trunk) if config.blend != 1.0 else {}
        fitted = Trainer(
            Network(head, plan.trunk, device.torch_device),
            phases,
            train,
            val,
            seed=config.seed,
            device=device,
            monitor=monitor,
            checkpoints=Checkpoints(folder, warn=options.warn, seconds=options.checkpoint_seconds),
            backbone=config.backbone,
            prepare=config.strategy.prepare,
            views=config.views,
            cache_dir=folder if config.cache else None,
        ).fit()
        if not device.is_main_process:
            sys.exit()
        alpha, new, head, lines = _deployed(plan, pretrained, head, progress)
        features = replace(new, decoded=features.decoded)
        fitted.history.extend(lines)
        fitted = replace(fitted, changed=fitted.changed if alpha else ())
        settings = {**plan.settings(device), "threads": torch.get_num_threads(), "blend": alpha}
        return write_bundle(plan, features, head, fitted, monitor.lines, settings)


def _deployed(
    plan: Plan, pretrained: Tensors, trained: nn.Module, progress: Progress
) -> tuple[float, Features, nn.Module, list[Line]]:
    """Leave the blend of weights in the trunk that is best on the validation images.

    Returns its alpha, its features by the deployed graph, the head on them, and the lines to add to the history.
    """
    config, tuned = plan.config, weights(plan.trunk) if pretrained else {}
    images, found = [sample.path for sample in plan.dataset.of("train")], []
    for alpha in alphas(config.blend):
        if pretrained:
            blend_weights(plan.trunk, pretrained, tuned, alpha, images)
        features = plan.extract(plan.trunk, progress("features of the fine-tuned trunk", len(plan.samples)))
        (train, val), head, lines = plan.examples(features), trained, list[Line]()
        if alpha != 1.0:
            solved = solve(config.head, train.features, train.labels, plan.classes, config.seed, train.groups)
            head = trained if solved is None else solved.eval()
            lines = [{"solved": config.head.name, "blend": alpha, **head_report(config.head, head)}]
        elif config.refit or config.head.stand_in() is not None:
            head, lines = refit_head(config.head, trained, train, val, plan.classes, config.seed)
        metrics = score(probabilities(head, val.features, config.head.activation), val.labels)
        found.append((metrics.balanced_accuracy - metrics.log_loss / 2, alpha, features, head, lines))
    _, alpha, features, head, lines = max(found, key=lambda each: each[:2])
    if pretrained:
        blend_weights(plan.trunk, pretrained, tuned, alpha, images)
    return alpha, features, head, lines
