"""`--strategy auto`: train what the advice recommends; a fine-tuned trunk is kept only if it beats the best before it.

A bundle of frozen features is in place within seconds: of many images one of the best stage under the default head,
before heads are compared. Trials and fine-tuning take long: they run in the run directory of the bundle (see
`training.run_directory`), one part after the other, and each that is better takes its place. So there is always a valid
bundle, none is worse on the validation images than the one before by more than the standard error, and a run can be
resumed.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tlkit.advice.quick_trial import quick_trial
from tlkit.advice.recommendation import recommend
from tlkit.advice.run import Advice, AdviceRequest, advise
from tlkit.advice.selection import FineTuning, available
from tlkit.advice.trials import SIMILAR, Trial, Trials, margin_for, run_trial, was_begun
from tlkit.defaults import FROZEN
from tlkit.errors import DataError, UsageError
from tlkit.evaluation.disturbed import Comparison
from tlkit.model import in_place
from tlkit.model import trunk as trunks
from tlkit.model.cut import check_cut
from tlkit.model.reference_images import remember
from tlkit.plugin.contract import Component, Progress, Tick, silent
from tlkit.plugin.sources import identity
from tlkit.runtime.feature_cache import environment
from tlkit.training.config import RunOptions
from tlkit.training.device import Device
from tlkit.training.result import TrainingResult
from tlkit.training.run import warn_among_images
from tlkit.training.run_directory import (
    DONE,
    MACHINE,
    best_so_far,
    check_output,
    machine,
    once,
    run_directory,
)
from tlkit.util import files
from tlkit.util.statistics import paired_difference
from tlkit.util.text import counted, format_seconds
from tlkit.version import __version__

NAME = "auto"
FIRST, QUICK = "first", "quick"  # parts of the run directory, beside FROZEN and the candidates
MAX_COMPARED = 2000  # images that heads are cross-validated on: a minute, where a fine-tuning takes many
BUDGET = 600.0  # seconds on a CPU, unless another is given: nobody waits for an hour unasked


class BudgetUsed(Exception):
    """The time for improvements is over, or too short for what is left to try."""


def train_auto(
    source: Path,
    out: Path,
    request: AdviceRequest,
    options: RunOptions | None = None,
    budget: float | Literal["auto"] | None = None,
    progress: Progress = silent,
) -> tuple[TrainingResult, Advice]:
    """Train what the advice recommends, and write the bundle `out` with the advice in it.

    The bundle of the best frozen features is written first, and replaced by each better one. After `budget` seconds the
    best so far stays, and a resumed run goes on; within a budget that is given every candidate of the installed
    strategies is tried. "auto" is `BUDGET` on a CPU, and only what the advice recommends. Without a budget, and with
    one that suffices, the same data and seed give the same bundle.
    """
    options = replace(options or RunOptions(), announce=False)  # the advice begins with the classes
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        what = f"{NAME} compares and decides in one process, not under torchrun"
        raise UsageError(what, do="ask `tlkit advise` first, and give torchrun the --strategy that it names")
    check_output(out, resume=options.resume)
    warn_among_images(source, out, options.warn)
    if request.cut is not None:
        cut = check_cut(request.cut, trunks.build(request.backbones[0]).names)
        request = replace(request, cut=cut)
    request = replace(request, policy=replace(request.policy, max_compared=MAX_COMPARED))
    exhaustive = budget not in ("auto", None)
    seconds = math.inf if budget is None else budget
    if seconds == "auto":
        seconds = BUDGET if Device(options.device).type == "cpu" else math.inf
    kept = _Kept(out, request, options, progress, seconds, time.monotonic() + seconds)
    try:
        with ExitStack() as entered:

            def keep(draft: Advice) -> bool:
                if kept.best is None:
                    identity = _conditions(draft, request, options)
                    kept.folder = entered.enter_context(run_directory(out, identity, resume=options.resume))
                return kept.keep_frozen(draft)

            advice = advise(source, request, kept.limited, strict=options.strict, learnable=True, keep=keep)
            _improve(kept, advice, exhaustive=exhaustive)
    except BudgetUsed as end_of_budget:
        progress(str(end_of_budget), 0)
    return kept.result()


@dataclass(slots=True)
class _Kept:
    """The best so far, which is in place of the output, with the advice that led to it; and the time to improve it."""

    out: Path
    request: AdviceRequest
    options: RunOptions
    progress: Progress
    seconds: float
    end: float  # of these, by `time.monotonic`
    folder: Path = field(init=False)
    advice: Advice = field(init=False)
    frozen: Trial = field(init=False)
    best: Trial | None = None
    digest: str | None = None  # None while a resumed run has not come to what is in place
    decoded: int = 0  # images, for all that was kept

    def keep_frozen(self, draft: Advice) -> bool:
        """Put frozen features in place, the first whatever the budget; return whether they are.

        Others are not where they are worse on the validation images by more than the standard error.
        """
        early, best, asked = draft.evidence is not None and not draft.heads, self.best, draft.recommendation
        if best is None or asked.arguments() != self.advice.recommendation.arguments():
            out, aside = self.folder / (FIRST if early else FROZEN), replace(self.options, tensorboard=None)
            progress = self.progress if best is None else self.limited
            trial = run_trial(draft.source, out, self.request, asked, progress, aside)
            if (
                best is not None
                and paired_difference(best.trained.correct, trial.trained.correct, trial.trained.truth).exceeds_error
            ):
                self.progress(f"{best.name} stays: on the validation images {trial.name} is worse", 0)
                return False
        else:
            trial = best
        self.frozen, self.decoded = trial, self.decoded or draft.decoded
        self.put(trial, draft)
        if early:
            self.check()
        return True

    def put(self, trial: Trial, advice: Advice) -> None:
        """Put a trial in place, and say so if it is another."""
        self.digest = in_place.put(trial.trained.bundle, self.out, _report(advice), self.folder)
        if trial is not self.best:
            self.decoded += trial.trained.decoded
            if self.digest is not None:
                self.progress(f"in place: {best_so_far(self.out)}", 0)
        self.best, self.advice = trial, advice

    def result(self) -> tuple[TrainingResult, Advice]:
        assert self.best is not None  # noqa: S101 - frozen features come first, whatever the budget
        assert self.digest is not None  # noqa: S101 - the verdicts of the interrupted run were kept
        remember(self.digest, self.advice.source)
        trained = replace(self.best.trained, bundle=self.out, digest=self.digest, decoded=self.decoded)
        return replace(trained, advice=self.advice), self.advice

    def left(self) -> float:
        return self.end - time.monotonic()

    def limited(self, what: str, total: int) -> Tick:
        """Show progress; raises `BudgetUsed` where work goes on after the end."""
        tick = self.progress(what, total)

        def checked(more: int, said: str = "", /) -> None:
            tick(more, said)
            self.check()

        return checked

    def check(self) -> None:
        """Raise `BudgetUsed` after the end, if something is in place."""
        if self.left() < 0 and self.digest is not None:
            reason = f"the budget of {format_seconds(self.seconds)} is used up"
            raise BudgetUsed(f"{reason}; the same command with --resume goes on")


def _improve(kept: _Kept, advice: Advice, *, exhaustive: bool) -> None:
    """Put each trial that is better in place; raises `BudgetUsed` if not all could be tried."""
    request, progress, baseline = kept.request, kept.limited, kept.frozen
    kept.put(baseline, replace(advice, recommendation=advice.recommendation.frozen()))
    undecided = exhaustive or advice.recommendation.trainable > 0 or _to_try(advice, request) is not None
    if undecided and kept.seconds < math.inf:
        progress(f"what is better within {format_seconds(kept.seconds)} takes its place (see --budget)", 0)
    advice = _tried(advice, request, kept.folder / QUICK, progress)
    chosen = advice.recommendation
    installed = available(request.heads, request.strategies, advice.dataset.statistics)
    every = [] if installed.fine_tuning is None or request.cut is not None else [installed.fine_tuning]
    every += [plan for plan in installed.candidates if every and plan not in every]
    wanted = len(every) if exhaustive else int(chosen.trainable > 0)
    places = [kept.folder / f"candidate-{number + 1}" for number in range(len(every))]
    plans = {place: every[n] for n, place in enumerate(places) if n < wanted or was_begun(place)}
    if chosen.trainable and chosen.seconds is not None:
        progress("fine-tuning, {} to {}".format(*map(format_seconds, chosen.seconds)), 0)
    trials = Trials(request, kept.left, progress, kept.options, kept.put)
    advice, skipped = trials.improve(advice, baseline, plans)
    kept.put(kept.best or baseline, advice)
    if exhaustive and kept.best not in (None, baseline):
        advice = trials.average(advice, kept.best)
        kept.put(kept.best, advice)
    if skipped:
        what = f"the budget of {format_seconds(kept.seconds)} is too small for {counted(skipped, 'training')}"
        raise BudgetUsed(f"{what}; the same command with --resume and a larger --budget goes on")


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
    margin = margin_for(advice.evidence, request, SIMILAR)
    evidence = replace(advice.evidence, trial=replace(Comparison.from_json(found), margin=margin))
    installed = available(request.heads, request.strategies, evidence.known)
    recommendation = recommend(evidence, installed, request.policy.fine_tuning)
    return replace(advice, evidence=evidence, recommendation=recommendation)


def _report(advice: Advice) -> Mapping[str, Any]:
    """Return the advice for the bundle: without times, which would make each bundle different, and without paths."""
    content = advice.to_json()
    del content["source"], content["rejected"]
    for name in ("seconds", "frozen_seconds"):
        del content["recommendation"][name]
    for part in (*content["heads"], *content["trials"]):
        part.pop("seconds", None)
    return content


def _conditions(advice: Advice, request: AdviceRequest, options: RunOptions) -> dict[str, Any]:
    """Return everything that decides the outcome as JSON types: a resumed run must have the same."""
    device = Device(options.device)  # fails at once if it is not available

    def named(components: tuple[Component, ...]) -> dict[str, Any]:
        return {component.name: identity(component) for component in components}

    return {
        "tlkit": __version__,
        "strategy": NAME,
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
