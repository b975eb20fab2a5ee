"""The advice as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from tlkit.advice.analysis import Sight
from tlkit.advice.recommendation import Recommendation
from tlkit.advice.run import Advice
from tlkit.util.text import listed

MOST_CLASSES = 8  # named with their counts
BAR = 24  # characters of a full bar


def lines(advice: Advice) -> list[str]:
    """The page: facts, likeness, evidence stage by stage, what is recommended and why."""
    parts = [_facts(advice)]
    for sight in advice.sights:
        parts.append(_likeness(sight))
        if sight.stages:
            parts.append(_stages(sight, advice.recommendation))
    if advice.heads:
        parts.append(_heads(advice))
    if advice.trials:
        parts.append(_trials(advice))
    parts.append(_verdict(advice.recommendation))
    return [line for part in parts for line in (*part, "")][:-1]


def _facts(advice: Advice) -> Iterator[str]:
    facts = advice.facts
    repeated = f" ({facts.images - facts.distinct} of them repeated)" if facts.distinct < facts.images else ""
    yield f"images    {facts.images} to learn from{repeated}, {len(advice.dataset.of('val'))} to validate on"
    counts = sorted(facts.per_class.items(), key=lambda each: -each[1])
    shown = listed((f"{label} {count}" for label, count in counts), MOST_CLASSES)
    yield f"classes   {facts.classes}: {shown}"
    if facts.imbalance >= 2:
        yield f"imbalance the largest class has {facts.imbalance:.1f} times as many images as the smallest"
    if facts.widths[1]:
        least, middle, greatest = facts.widths
        size = f"{middle} x {facts.heights[1]} pixels in the middle, widths from {least} to {greatest}"
        yield f"size      {size} ({', '.join(facts.formats)})"


def _likeness(sight: Sight) -> Iterator[str]:
    shift = sight.shift
    figure = "" if shift.overall is None else f", shift {shift.overall:.3f} over {shift.images} images"
    yield f"{sight.backbone.name}, against the images of its pretraining: {shift.likeness.upper()}{figure}"
    yield f"  {shift.reason}"
    if shift.kind:
        yield f"  {shift.kind}"
    if sight.confidence is not None:
        sure = sight.confidence
        yield f"  its own classifier: greatest probability {sure.greatest:.2f}, entropy {sure.entropy:.2f} of the most"


def _stages(sight: Sight, recommended: Recommendation) -> Iterator[str]:
    yield f"  {'stage':<10} {'width':>5}  {'probe':>6}  {'95 %':<14} {'nearest':>7} {'LogME':>7} {'H':>6} {'shift':>6}"
    for stage in sight.stages:
        low, high = stage.probe.interval
        distance = sight.shift.stages.get(stage.name)
        chosen = recommended.sure and (sight.backbone.name, stage.name) == (recommended.backbone, recommended.cut)
        bar = "#" * round(BAR * stage.probe.accuracy)
        yield (
            f"{'>' if chosen else ' '} {stage.name:<10} {stage.width:>5}  {stage.probe.accuracy:>6.1%}  "
            f"{f'{low:.1%} - {high:.1%}':<14} {stage.nearest.accuracy:>7.1%} {stage.logme:>7.3f} {stage.h_score:>6.2f} "
            f"{'' if distance is None else f'{distance:.2f}':>6}  {bar}"
        ).rstrip()


def _heads(advice: Advice) -> Iterator[str]:
    ordered = sorted(advice.heads, key=lambda each: -each.accuracy)
    yield f"heads, cross-validated on {ordered[0].images} images: " + ", ".join(
        f"{each.head} {each.accuracy:.1%}" for each in ordered
    )


def _trials(advice: Advice) -> Iterator[str]:
    yield "trials, measured on the validation images:"
    for trial in advice.trials:
        yield f"  {trial['what']:<40} {trial['accuracy']:.1%}, {seconds(trial['seconds'])}"


def _verdict(recommendation: Recommendation) -> Iterator[str]:
    if not recommendation.sure:
        yield f"NOT ENOUGH TO TELL: {'; '.join(recommendation.reasons)}"
        yield "more images of each class, each another picture, would let this say something"
        return
    if recommendation.case is not None:
        yield f"the rule: {recommendation.case}: {recommendation.rule}"
    for reason in recommendation.reasons:
        yield f"  {reason}"
    yield (
        f"RECOMMENDED: {recommendation.strategy}, {recommendation.backbone} up to {recommendation.cut}, "
        f"{recommendation.head} head" + _moving(recommendation)
    )
    if recommendation.accuracy is not None:
        low, high = recommendation.accuracy
        yield f"  expected accuracy {low:.1%} to {high:.1%}"
    if recommendation.seconds is not None:
        yield f"  time on this machine about {seconds(recommendation.seconds)}"


def _moving(recommendation: Recommendation) -> str:
    if not recommendation.trainable:
        return ""
    rates = ", ".join(f"{what} {rate:g}" for what, rate in recommendation.rates.items())
    return f"; {recommendation.trainable} stages move ({rates})"


def seconds(value: float) -> str:
    """A time in words, to the precision that an estimate has."""
    if value < 90:
        return f"{max(1, round(value))} s"
    return f"{round(value / 60)} min" if value < 5400 else f"{value / 3600:.1f} h"


def summary(recommendation: Recommendation) -> list[str]:
    """The verdict alone."""
    return list(_verdict(recommendation))
