"""The advice as sections of lines and tables, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit.model.cut import blocks_of
from tlkit.util.text import format_seconds, listed, table

if TYPE_CHECKING:
    from tlkit.advice.backbone_analysis import BackboneAnalysis
    from tlkit.advice.run import Advice

MAX_CLASSES = 8  # listed with their counts


@dataclass(frozen=True, slots=True)
class Section:
    """Title, lines, and a table with its columns and the row to mark, if any."""

    title: str
    lines: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    marked: int | None = None

    def __str__(self) -> str:
        lines = [self.title, *(f"  {line}" for line in self.lines)]
        for number, row in enumerate(table(self.rows, self.columns) if self.rows else (), start=-1):
            lines.append(f"{'>' if number == self.marked else ' '} {row}")
        return "\n".join(lines)


def text(advice: Advice) -> str:
    """Return the page: dataset, domain shift, evidence, recommendation and reasons, and the audit."""
    parts: list[object] = [*sections(advice), advice.recommendation]
    if advice.audit is not None:
        parts.append(advice.audit)
    return "\n\n".join(map(str, parts))


def sections(advice: Advice) -> list[Section]:
    """Return the evidence: the dataset, each backbone, the heads and the trials."""
    found = [Section("dataset", list(_dataset(advice)))]
    found += [backbone(analysis, advice) for analysis in advice.analyses]
    if advice.heads:
        ordered = sorted(advice.heads, key=lambda each: -each.score)
        rows = [[each.name, each.stage, f"{each.balanced_accuracy:.1%}", f"{each.log_loss:.3f}"] for each in ordered]
        chosen = advice.recommendation.frozen()
        recommended = (chosen.head, dict(chosen.head_settings), chosen.cut)
        named = [(each.head, dict(each.settings), each.stage) for each in ordered]
        marked = named.index(recommended) if recommended in named else None
        columns = ["head", "stage", "balanced accuracy", "log loss, nats"]
        found.append(Section("heads, cross-validated", (), columns, rows, marked))
    if advice.trials:
        rows = [[each["name"], f"{each['accuracy']:.1%}", format_seconds(each["seconds"])] for each in advice.trials]
        found.append(Section("trials on the validation images", (), ["training", "accuracy", "time"], rows))
    return found


def backbone(analysis: BackboneAnalysis, advice: Advice) -> Section:
    """Return the domain shift of a backbone, and its evidence stage by stage."""
    shift, confidence, recommended = analysis.shift, analysis.confidence, advice.recommendation
    figure = "" if shift.overall is None else f" ({shift.overall:.3f} nats over {shift.images} images)"
    lines = [f"domain shift from its pretraining data: {shift.domain.upper()}{figure}, {shift.reason}"]
    if shift.location:
        lines.append(shift.location)
    if confidence is not None:
        entropy = f"entropy {confidence.entropy:.2f} of the maximum"
        lines.append(f"pretrained classifier: mean maximum probability {confidence.max_probability:.2f}, {entropy}")
    columns = ["stage", "width", "probe", "95 %", "nearest mean", "LogME", "H-score", "shift, nats"]
    rows = []
    for stage in analysis.stages:
        low, high = stage.probe.interval
        means = stage.nearest_mean.balanced_accuracy
        probes = [f"{stage.probe.balanced_accuracy:.1%}", f"{low:.1%} to {high:.1%}", f"{means:.1%}"]
        value = shift.stages.get(stage.name)
        scores = [f"{stage.logme:.3f}", f"{stage.h_score:.2f}", "" if value is None else f"{value:.3f}"]
        rows.append([stage.name, str(stage.width), *probes, *scores])
    chosen = blocks_of(recommended.cut)[-1] if analysis.backbone.name == recommended.backbone else None
    marked = next((row for row, stage in enumerate(analysis.stages) if stage.name == chosen), None)
    return Section(analysis.backbone.name, lines, columns, rows, marked)


def _dataset(advice: Advice) -> Iterator[str]:
    statistics = advice.statistics
    repeated = statistics.images - statistics.distinct
    duplicates = f" ({repeated} of them repeated)" if repeated else ""
    yield f"{statistics.images} training images{duplicates}, {len(advice.dataset.of('val'))} validation images"
    counts = sorted(statistics.per_class.items(), key=lambda each: -each[1])
    yield f"{statistics.classes} classes: {listed((f'{label} {count}' for label, count in counts), MAX_CLASSES)}"
    if statistics.imbalance >= 2:
        yield f"imbalance: the largest class has {statistics.imbalance:.1f} times as many images as the smallest"
    if statistics.widths[1]:
        low, middle, high = statistics.widths
        size = f"{middle} x {statistics.heights[1]} pixels (median), widths from {low} to {high}"
        yield f"{size} ({', '.join(statistics.formats)})"
