"""`--strategy auto`: train what the advice recommends; a fine-tuned trunk is kept only if it beats the best frozen one.

Trials and fine-tuning take long: they run in the run directory of the bundle (see `training.run_directory`), one part
after the other, so that an interrupted run can be resumed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tlkit.advice.recommendation import recommend
from tlkit.advice.run import Advice, AdviceRequest, advise
from tlkit.advice.selection import FineTuning, available
from tlkit.advice.trials import compared, quick_trial, run_trial, run_trials, training_config
from tlkit.defaults import FROZEN
from tlkit.errors import DataError, UsageError
from tlkit.evaluation.disturbed import Comparison
from tlkit.model import trunk as trunks
from tlkit.model.cut import check_cut
from tlkit.plugin.contract import Component, Progress, silent
from tlkit.plugin.sources import identity
from tlkit.runtime.feature_cache import environment
from tlkit.training.config import RunOptions
from tlkit.training.device import Device
from tlkit.training.result import TrainingResult
from tlkit.training.run import train
from tlkit.training.run_directory import DONE, MACHINE, check_unfinished, folder_of, machine, once, run_directory
from tlkit.util import files
from tlkit.util.text import format_seconds
from tlkit.version import __version__

NAME = "auto"
TRIALS, FINE_TUNED_PART, QUICK = "trials", "fine-tuned", "quick"  # parts of the run directory, beside FROZEN
MAX_COMPARED = 2000  # images that heads are cross-validated on: a minute, where a fine-tuning takes many


def train_auto(
    source: Path,
    out: Path,
    request: AdviceRequest,
    options: RunOptions | None = None,
    budget: float | None = None,
    progress: Progress = silent,
) -> tuple[TrainingResult, Advice]:
    """Train what the advice recommends, and write the bundle `out` with the advice in it.

    Without a budget the same data and seed give the same bundle.
    """
    options = replace(options or RunOptions(), announce=False)  # the advice begins with the classes
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        what = f"{NAME} compares and decides in one process, not under torchrun"
        raise UsageError(what, do="ask `tlkit advise` first, and give torchrun the --strategy that it names")
    files.check_new(out)
    files.check_writable(out)
    check_unfinished(out, resume=options.resume)
    if request.cut is not None:
        cut = check_cut(request.cut, trunks.build(request.backbones[0]).names)
        request = replace(request, cut=cut)
    request = replace(request, policy=replace(request.policy, max_compared=MAX_COMPARED))
    advice = advise(source, request, progress, strict=options.strict, learnable=True)
    undecided = advice.recommendation.trainable > 0 or _to_try(advice, request) is not None
    if not (undecided or budget is not None or (options.resume and folder_of(out).exists())):
        return _train(out, request, advice, progress, options), advice
    with run_directory(
        out, _conditions(advice, request, options, budget), resume=options.resume, is_main_process=True
    ) as folder:
        return _compare(out, folder, request, advice, budget, progress, options)


def _compare(
    out: Path,
    folder: Path,
    request: AdviceRequest,
    advice: Advice,
    budget: float | None,
    progress: Progress,
    options: RunOptions,
) -> tuple[TrainingResult, Advice]:
    """Run trials, whole ones if there is a budget; then train frozen and fine-tuned, if that is recommended."""
    aside = replace(options, tensorboard=None)  # the curves are those of what is kept
    if budget is not None:
        advice = run_trials(advice, request, budget, progress, aside, folder / TRIALS)
    else:
        advice = _tried(advice, request, folder / QUICK, progress)
    chosen = advice.recommendation
    if not chosen.trainable:
        return _train(out, request, advice, progress, options), advice
    frozen = chosen.frozen()
    if chosen.seconds is not None:
        progress("fine-tuning, {} to {}".format(*map(format_seconds, chosen.seconds)), 0)
    baseline = run_trial(advice.source, folder / FROZEN, request, frozen, progress, aside)
    seen = replace(advice, trials=[*advice.trials, baseline.to_json()])
    part = folder / FINE_TUNED_PART
    try:
        tuned = run_trial(advice.source, part, request, chosen, progress, options, advice=_kept(seen))
    except DataError as problem:  # the images are good: frozen features were just trained on them
        reason = f"fine-tuning failed: {problem.what}"
    else:
        val = advice.dataset.without(baseline.trained.rejected).of("val")
        # A quick trial was as strict as it has to be.
        strict = advice.analysis.shift.domain == "similar" and not (advice.evidence and advice.evidence.trial)
        comparison = compared(request, val, baseline.trained, tuned.trained, strict=strict)
        if comparison.better:
            os.rename(part, out)
            done = replace(chosen, accuracy=tuned.trained.metrics.balanced_interval)
            seen = replace(seen, recommendation=done.with_reasons(f"the fine-tuned trunk is better: {comparison}"))
            return _with_decoded(replace(tuned.trained, bundle=out), seen, baseline.trained), seen
        reason = f"the fine-tuned trunk is not better than frozen features: {comparison}"
        lost = {"name": tuned.name, "accuracy": tuned.trained.metrics.accuracy}
        seen = replace(seen, trials=[*seen.trials, lost])
    seen = replace(seen, recommendation=frozen.with_reasons(reason))
    return _train(out, request, seen, progress, options, baseline.trained), seen


def _to_try(advice: Advice, request: AdviceRequest) -> FineTuning | None:
    """Return the plan that a quick trial is to decide on; None without one, or if frozen features are always right."""
    evidence = advice.evidence
    if evidence is None or request.cut is not None or not request.policy.fine_tuning.trial:
        return None
    plan = available(request.heads, request.strategies, evidence.known).fine_tuning
    return None if evidence.cut.probe.correct.all() else plan


def _tried(advice: Advice, request: AdviceRequest, folder: Path, progress: Progress) -> Advice:
    """Return the advice with a quick trial, if there is one to run, and the recommendation that follows from it."""
    plan = _to_try(advice, request)
    if plan is None or advice.evidence is None:
        return advice
    cut = advice.evidence.cut.name

    def trial() -> dict[str, Any] | None:
        folder.mkdir(exist_ok=True)
        try:
            found = quick_trial(advice, request, plan, cut, folder, progress)
        except DataError:  # it diverged, or a fold has too few images: the whole training decides
            return None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return None if found is None else asdict(found)

    found, _ = once(folder.with_name(f"{folder.name}{DONE}"), trial)
    if found is None:
        return advice
    evidence = replace(advice.evidence, trial=Comparison.from_json(found))
    installed = available(request.heads, request.strategies, evidence.known)
    return replace(advice, recommendation=recommend(evidence, installed, request.policy.fine_tuning))


def _train(
    out: Path, request: AdviceRequest, advice: Advice, progress: Progress, options: RunOptions, *before: TrainingResult
) -> TrainingResult:
    """Train what is recommended, with the advice in the bundle."""
    config = replace(training_config(request, advice.recommendation), advice=_kept(advice))
    trained = train(advice.source, out, config, progress, options, within=True)
    return _with_decoded(trained, advice, *before)


def _with_decoded(trained: TrainingResult, advice: Advice, *before: TrainingResult) -> TrainingResult:
    """Return the result with the images counted that were decoded for the advice and for earlier trainings."""
    others = advice.analysis.features.decoded + sum(each.decoded for each in before)
    return replace(trained, decoded=trained.decoded + others)


def _kept(advice: Advice) -> Mapping[str, Any]:
    """Return the advice for the bundle: without times, which would make each bundle different, and without paths."""
    content = advice.to_json()
    del content["source"], content["rejected"]
    for name in ("seconds", "frozen_seconds"):
        del content["recommendation"][name]
    for part in (*content["heads"], *content["trials"]):
        part.pop("seconds", None)
    return content


def _conditions(advice: Advice, request: AdviceRequest, options: RunOptions, budget: float | None) -> dict[str, Any]:
    """Return everything that decides the outcome as JSON types: a resumed run must have the same."""
    device = Device(options.device)  # fails at once if it is not available

    def named(components: tuple[Component, ...]) -> dict[str, Any]:
        return {component.name: identity(component) for component in components}

    return {
        "tlkit": __version__,
        "strategy": NAME,
        "budget": budget,
        "backbone": named(tuple(request.backbones)),
        "head": named(tuple(request.heads)),
        "strategies": named(tuple(request.strategies)),
        "detectors": named(tuple(request.detectors)),
        **{name: getattr(request, name) for name in ("cut", "val", "group", "max_bad", "seed")},
        **request.options,
        "policy": asdict(request.policy),
        "device": device.type,
        "precision": str(device.dtype).removeprefix("torch."),
        "compile": device.compile,
        "tf32": device.tf32,
        **{name: metadata.version(name) for name in ("scikit-learn", "torch")},
        **environment(),
        MACHINE: machine(),
        "images": _images(advice),
    }


def _images(advice: Advice) -> dict[str, str]:
    """Return split, label and content hash of each image; only those of train were read for the advice."""
    read = zip(advice.dataset.of("train"), advice.analysis.features.sha256, strict=True)
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
