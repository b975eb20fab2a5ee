"""The advice as one self-contained HTML page, for a file or a notebook: no script, no URL, figures inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tlkit.advice import figures, page
from tlkit.pages import html, svg

if TYPE_CHECKING:
    from tlkit.advice.backbone_analysis import BackboneAnalysis
    from tlkit.advice.run import Advice
    from tlkit.audit.run import Audit

THUMBNAIL = 112
MAX_FINDINGS = 24  # of each kind that are shown
MAX_CLASSES = 20  # with a bar of their own


def write(file: Path, advice: Advice) -> None:
    """Write the page atomically; it does not say where on this machine the images lie."""
    if advice.source.is_absolute():
        advice = replace(advice, source=Path(advice.source.name or "photos"))
    html.write(file, html.document(_title(advice), "\n".join(_body(advice))))


def fragment(advice: Advice) -> str:
    """Return the page's content for a notebook, with a style that applies to it alone."""
    content = html.main(_title(advice), "\n".join(_body(advice)))
    return f'<style>{html.asset("page.css")}</style><div class="page">{content}</div>'


def _title(advice: Advice) -> str:
    return f"Advice for {advice.source}"


def _body(advice: Advice) -> Iterator[str]:
    yield _verdict(advice)
    analyses = {analysis.backbone.name: analysis for analysis in advice.analyses}
    for number, section in enumerate(page.sections(advice)):
        yield f"<h2>{escape(section.title.capitalize() if section.title not in analyses else section.title)}</h2>"
        yield from (f"<p>{escape(line)}</p>" for line in section.lines)
        if not number:
            yield _class_bars(advice)
        elif section.rows and section.title in analyses:
            yield from _depth(analyses[section.title], section.marked)
        if section.rows:
            yield html.table(section.columns, section.rows, [] if section.marked is None else [section.marked])
    yield from _maps(advice)
    if advice.audit is not None:
        yield from _audit(advice, advice.audit)


def _verdict(advice: Advice) -> str:
    chosen = advice.recommendation
    details = "".join(f"<li>{escape(detail)}</li>" for detail in chosen.details())
    return (
        f'<section class="verdict {chosen.verdict}"><p class="what">{escape(chosen.summary())}</p><ul>{details}</ul>'
        f"<pre><code>{escape(advice.command)}</code></pre></section>"
    )


def _class_bars(advice: Advice) -> str:
    counts = sorted(advice.statistics.per_class.items(), key=lambda each: -each[1])
    most = max(1, counts[0][1])
    bars = "".join(
        f'<tr><td>{escape(label)}</td><td>{count}</td><td class="bar"><span style="width:{100 * count / most:.0f}%">'
        "</span></td></tr>"
        for label, count in counts[:MAX_CLASSES]
    )
    return f'<div class="wide"><table><tr><th>class</th><th>images</th><th></th></tr>{bars}</table></div>'


def _depth(analysis: BackboneAnalysis, marked: int | None) -> Iterator[str]:
    yield "<h3>Accuracy and domain shift over depth</h3>"
    yield svg.legend(
        {"linear probe, with its 95 % interval": "var(--first)", "nearest class mean": "var(--second)"}
        | ({"domain shift": "var(--third)"} if analysis.shift.stages else {})
    )
    chosen = None if marked is None else analysis.stages[marked].name
    yield f'<div class="wide">{figures.depth(analysis, chosen)}</div>'


def _maps(advice: Advice) -> Iterator[str]:
    found = list(figures.maps(advice))
    if not found:
        return
    labels = advice.dataset.labels
    yield f"<h2>The images by their features at {escape(advice.recommendation.cut)}</h2>"
    yield svg.legend(dict(zip(labels, svg.colors(len(labels)), strict=True)))
    maps = ""
    for each, drawn in found:
        title = each.method.replace("principal", "Principal")
        maps += f"<figure><h3>{title}</h3>{drawn}<figcaption>{each.axes}</figcaption></figure>"
    yield f'<div class="maps">{maps}</div>'


def _audit(advice: Advice, audit: Audit) -> Iterator[str]:
    yield "<h2>Audit</h2>"
    yield f"<pre>{escape(str(audit))}</pre>"
    paths = {sample.name: sample.path for sample in advice.dataset.samples}
    if audit.near_duplicates:
        yield "<h3>Duplicates</h3>"
        for pair in audit.near_duplicates[:MAX_FINDINGS]:
            names = [pair.first, pair.second]
            yield _finding(paths, names, f"{' = '.join(names)} ({pair.problems})")
    if audit.label_issues:
        yield "<h3>Label issues</h3>"
        for issue in audit.label_issues[:MAX_FINDINGS]:
            yield _finding(paths, [issue.name], str(issue))


def _finding(paths: Mapping[str, Path], names: Sequence[str], caption: str) -> str:
    """Return images beside each other, and what was found about them."""
    shown = ""
    for name in names:
        picture = svg.thumbnail(paths[name], THUMBNAIL) if name in paths else None
        if picture is not None:
            shown += f'<img alt="{escape(name)}" width="{THUMBNAIL}" height="{THUMBNAIL}" src="{picture}">'
    return f'<figure class="finding">{shown}<figcaption>{escape(caption)}</figcaption></figure>'
