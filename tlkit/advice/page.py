"""The advice as a page of text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tlkit.advice.recommendation import Recommendation, duration
from tlkit.util.text import listed

if TYPE_CHECKING:
    from tlkit.advice.backbone_analysis import BackboneAnalysis
    from tlkit.advice.run import Advice

MAX_CLASSES = 8  # listed with their counts
BAR = 24  # characters of a full bar


def text(advice: Advice) -> str:
    """Return the page: statistics, domain shift, evidence of each stage, recommendation and reasons, and the audit."""
    parts = ["\n".join(_statistics(advice))]
    for analysis in advice.analyses:
        parts.append("\n".join(_shift(analysis)))
        if analysis.stages:
            parts.append("\n".join(_stages(analysis, advice.recommendation)))
    if advice.heads:
        parts.append(_heads(advice))
    if advice.trials:
        parts.append("\n".join(_trials(advice)))
    parts.append(str(advice.recommendation))
    if advice.audit is not None:
        parts.append(str(advice.audit))
    return "\n\n".join(parts)


def _statistics(advice: Advice) -> Iterator[str]:
    statistics = advice.statistics
    repeated = statistics.images - statistics.distinct
    duplicates = f" ({repeated} of them repeated)" if repeated else ""
    yield f"images    {statistics.images} for training{duplicates}, {len(advice.dataset.of('val'))} for validation"
    counts = sorted(statistics.per_class.items(), key=lambda each: -each[1])
    shown = listed((f"{label} {count}" for label, count in counts), MAX_CLASSES)
    yield f"classes   {statistics.classes}: {shown}"
    if statistics.imbalance >= 2:
        yield f"imbalance the largest class has {statistics.imbalance:.1f} times as many images as the smallest"
    if statistics.widths[1]:
        low, middle, high = statistics.widths
        size = f"{middle} x {statistics.heights[1]} pixels (median), widths from {low} to {high}"
        yield f"size      {size} ({', '.join(statistics.formats)})"


def _shift(analysis: BackboneAnalysis) -> Iterator[str]:
    shift, confidence = analysis.shift, analysis.confidence
    figure = "" if shift.overall is None else f", shift {shift.overall:.3f} over {shift.images} images"
    yield f"{analysis.backbone.name}, domain shift from its pretraining data: {shift.domain.upper()}{figure}"
    yield f"  {shift.reason}"
    if shift.location:
        yield f"  {shift.location}"
    if confidence is not None:
        entropy = f"entropy {confidence.entropy:.2f} of the maximum"
        yield f"  pretrained classifier: mean maximum probability {confidence.max_probability:.2f}, {entropy}"


def _stages(analysis: BackboneAnalysis, recommended: Recommendation) -> Iterator[str]:
    yield f"  {'stage':<10} {'width':>5}  {'probe':>6}  {'95 %':<14} {'nearest':>7} {'LogME':>7} {'H':>6} {'shift':>6}"
    for stage in analysis.stages:
        low, high = stage.probe.interval
        shift = analysis.shift.stages.get(stage.name)
        chosen = (analysis.backbone.name, stage.name) == (recommended.backbone, recommended.cut)
        bar = "#" * round(BAR * stage.probe.accuracy)
        yield (
            f"{'>' if chosen and not recommended.inconclusive else ' '} {stage.name:<10} {stage.width:>5}  "
            f"{stage.probe.accuracy:>6.1%}  {f'{low:.1%} - {high:.1%}':<14} {stage.nearest_mean.accuracy:>7.1%} "
            f"{stage.logme:>7.3f} {stage.h_score:>6.2f} {'' if shift is None else f'{shift:.2f}':>6}  {bar}"
        ).rstrip()


def _heads(advice: Advice) -> str:
    ordered = sorted(advice.heads, key=lambda each: -each.accuracy)
    accuracies = ", ".join(f"{each.head} {each.accuracy:.1%}" for each in ordered)
    return f"heads, cross-validated on {ordered[0].images} images: {accuracies}"


def _trials(advice: Advice) -> Iterator[str]:
    yield "trials, accuracy on the validation images:"
    for trial in advice.trials:
        yield f"  {trial['name']:<40} {trial['accuracy']:.1%}, {duration(trial['seconds'])}"
