"""The advice as one self-contained HTML page, for a file or a notebook: no script, no URL, figures inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tlkit.advice import figures, page
from tlkit.errors import UsageError
from tlkit.util.files import atomic_file, check_own, contains

if TYPE_CHECKING:
    from tlkit.advice.backbone_analysis import BackboneAnalysis
    from tlkit.advice.run import Advice
    from tlkit.audit.run import Audit

MARK = '<meta name="generator" content="tlkit">'
THUMBNAIL = 112
MAX_FINDINGS = 24  # of each kind that are shown
MAX_CLASSES = 20  # with a bar of their own


def check(file: Path) -> None:
    """Refuse, before any work, a page that could not be written, or would replace another's."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise UsageError("not an HTML file", file=file, do="end its name in .html")
    check_own(file, lambda path: contains(path, MARK.encode()))


def write(file: Path, advice: Advice) -> None:
    """Write the page atomically; it does not say where on this machine the images lie."""
    if advice.source.is_absolute():
        advice = replace(advice, source=Path(advice.source.name or "photos"))
    content = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_title(advice)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{MARK}\n'
        f'<style>{STYLE}</style>\n</head>\n<body class="advice">\n{_main(advice)}\n</body>\n</html>\n'
    )
    with atomic_file(file, check=check) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")


def fragment(advice: Advice) -> str:
    """Return the page's content for a notebook, with a style that applies to it alone."""
    return f'<style>{STYLE}</style><div class="advice">{_main(advice)}</div>'


def _title(advice: Advice) -> str:
    return f"Advice for {escape(str(advice.source))}"


def _main(advice: Advice) -> str:
    body = "\n".join(_body(advice))
    return f"<main>\n<h1>{_title(advice)}</h1>\n{body}\n</main>"


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
            yield _table(section.columns, section.rows, section.marked)
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
    yield figures.legend(
        {"linear probe, with its 95 % interval": "var(--first)", "nearest class mean": "var(--second)"}
        | ({"domain shift": "var(--third)"} if analysis.shift.stages else {})
    )
    chosen = None if marked is None else analysis.stages[marked].name
    yield f'<div class="wide">{figures.depth(analysis, chosen)}</div>'


def _maps(advice: Advice) -> Iterator[str]:
    found = figures.maps(advice) if advice.statistics.images >= 3 else []
    if not found:
        return
    labels = advice.dataset.labels
    yield f"<h2>The images by their features at {escape(advice.recommendation.cut)}</h2>"
    yield figures.legend(dict(zip(labels, figures.colors(len(labels)), strict=True)))
    maps = "".join(
        f"<figure><h3>{each.title}</h3>{each.svg}<figcaption>{each.axes}</figcaption></figure>" for each in found
    )
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
        picture = figures.thumbnail(paths[name], THUMBNAIL) if name in paths else None
        if picture is not None:
            shown += f'<img alt="{escape(name)}" width="{THUMBNAIL}" height="{THUMBNAIL}" src="{picture}">'
    return f'<figure class="finding">{shown}<figcaption>{escape(caption)}</figcaption></figure>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], marked: int | None) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(column)}</th>' for column in columns)}</tr>"]
    for number, row in enumerate(rows):
        mark = ' class="chosen"' if number == marked else ""
        lines.append(f"<tr{mark}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


# Light or dark as the system is, on a wide screen or a phone; nested, so that a notebook around it is not affected.
STYLE = """
.advice { color-scheme: light dark; --ink: #1d2430; --soft: #5a6472; --paper: #fff; --panel: #f4f6f9;
  --rule: #d9dee5; --accent: #1b62b5; --good: #e3f3e6; --warn: #b36b00; --first: #1b62b5; --second: #c26a00;
  --third: #8b95a3; margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", sans-serif;
@media (prefers-color-scheme: dark) { & { --ink: #e6e9ee; --soft: #a4adba; --paper: #14181e; --panel: #1e242c;
  --rule: #37404c; --accent: #6cb0ff; --good: #1d3a26; --warn: #f0b04a; --first: #6cb0ff; --second: #f0a550;
  --third: #7d8896; } }
* { box-sizing: border-box; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
.verdict { background: var(--panel); border-left: 5px solid var(--accent); border-radius: 4px; padding: .9rem 1.2rem; }
.verdict.inconclusive { border-color: var(--warn); }
.what { margin: 0 0 .6rem; font-size: 1.25rem; font-weight: 650; line-height: 1.3; }
.inconclusive .what { color: var(--warn); }
p { margin: .4rem 0; } ul { margin: .5rem 0; padding-left: 1.2rem; }
pre { margin: .3rem 0; padding: .6rem .8rem; background: var(--paper); border: 1px solid var(--rule);
  border-radius: 4px; font: .85rem/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; max-width: 100%; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .75rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .4rem; }
th { border-bottom: 1px solid var(--soft); color: var(--soft); font-weight: 600; }
tr.chosen { background: var(--good); font-weight: 650; }
.bar { width: 9rem; } .bar span { display: block; height: .7rem; background: var(--third); border-radius: 2px; }
svg { display: block; height: auto; } svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
.wide > svg { width: 100%; min-width: 34rem; max-width: 46rem; }
svg .marked { fill: var(--ink); font-weight: 700; } .grid { stroke: var(--rule); }
polyline, path { fill: none; } polyline { stroke-width: 2; } .first { stroke: var(--first); } circle.first {
  fill: var(--first); stroke: none; } .second { stroke: var(--second); } polyline.second { stroke-dasharray: 3 4; }
circle.second { fill: var(--second); stroke: none; } .third { fill: var(--third); }
.frame { fill: var(--panel); stroke: var(--rule); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .4rem 0; list-style: none;
  font-size: .88rem; color: var(--soft); }
.legend span { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; border-radius: 2px; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: var(--soft); margin-top: .4rem; }
.maps svg { width: 100%; } .maps h3 { margin-top: .6rem; }
.finding { display: inline-block; vertical-align: top; max-width: 15rem; margin: .4rem 1rem .8rem 0; }
.finding img { border-radius: 4px; margin-right: .3rem; } .finding figcaption { overflow-wrap: anywhere; }
}
"""
