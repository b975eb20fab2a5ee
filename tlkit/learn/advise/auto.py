"""`--strategy auto`: advise, then do it; a trunk that moved is kept only if it is ahead of the best that did not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlkit import files
from tlkit.deploy.progress import Progress, silent
from tlkit.learn.advise.advice import Advice, Question, advise
from tlkit.learn.advise.recommend import Recommendation
from tlkit.learn.advise.trials import ahead, recipe, run, try_out, words
from tlkit.learn.plan import How
from tlkit.learn.result import Trained
from tlkit.learn.train import train
from tlkit.model import trunk as trunks
from tlkit.plugin.settings import configure


def train_auto(
    source: Path,
    out: Path,
    question: Question,
    how: How | None = None,
    budget: float | None = None,
    progress: Progress = silent,
) -> tuple[Trained, Advice]:
    """Train what the advice recommends, and write the bundle `out` with the advice in it.

    Without a budget the same data and seed give the same bundle.
    """
    files.check_new(out)
    files.check_writable(out)
    if question.cut is not None:
        trunks.check_cut(question.cut, trunks.build(question.backbones[0]).names)
    advice = advise(source, question, progress)
    if budget is not None:
        advice = try_out(advice, question, budget, progress, how)
    chosen = _heed(advice.recommendation, question)
    advice = replace(advice, recommendation=chosen)
    if chosen.strategy == "frozen":
        return _train(out, question, advice, progress, how), advice
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.", suffix=".auto") as room:
        frozen = chosen.frozen()
        still = run(source, Path(room, "frozen"), words(frozen), recipe(question, frozen), progress, how)
        seen = replace(advice, trials=[*advice.trials, still.to_json()])
        moved = _train(Path(room, "moved"), question, seen, progress, how)
        if ahead(moved, still.trained):
            os.rename(Path(room, "moved"), out)
            return replace(moved, root=out), seen
    lost = {"what": words(chosen), "accuracy": moved.scores.accuracy}
    why = "the trunk that moved is not ahead of frozen features on the validation images, by more than chance"
    seen = replace(seen, trials=[*seen.trials, lost], recommendation=frozen.because(why))
    return _train(out, question, seen, progress, how), seen


def _heed(recommendation: Recommendation, question: Question) -> Recommendation:
    """The recommendation with the cut that the user wants; then nothing moves."""
    return recommendation if question.cut is None else replace(recommendation.frozen(), cut=question.cut)


def _train(out: Path, question: Question, advice: Advice, progress: Progress, how: How | None) -> Trained:
    """Train what is recommended; the images that were decoded for the advice count as decoded for it."""
    chosen = advice.recommendation
    plain = recipe(question, chosen)
    options = {name.removeprefix("strategy."): value for name, value in chosen.settings.items()}
    whole = replace(plain, strategy=configure(plain.strategy, options), advice=_kept(advice))
    trained = train(advice.source, out, whole, progress, how)
    return replace(trained, decoded=trained.decoded + advice.sight.features.decoded)


def _kept(advice: Advice) -> Mapping[str, Any]:
    """What the bundle keeps: all but times, which would make each bundle another, and where the data are."""
    content = advice.to_json()
    del content["source"], content["rejected"]
    content["recommendation"].pop("seconds")
    for part in (*content["heads"], *content["trials"]):
        part.pop("seconds", None)
    return content
