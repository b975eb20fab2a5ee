"""A self-contained HTML page: no request leaves it, and what it shows of names is text."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path, PurePath
from typing import Any

from tlkit.errors import UsageError, one_line
from tlkit.util.files import atomic_file, check_own, contains

MAX_NAME = 120  # characters
MARK = '<meta name="generator" content="tlkit">'


def check(file: Path) -> None:
    """Refuse, before any work, a page that could not be written, or would replace another's."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise UsageError("not an HTML file", file=file, do="end its name in .html")
    check_own(file, lambda path: contains(path, MARK.encode()))


def write(file: Path, page: str) -> None:
    """Write a page atomically."""
    with atomic_file(file, check=check) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def document(title: str, content: str, *, style: str = "", script: str = "", data: Any = None) -> str:
    """Return a page with this content, of which `title` is text; `script` finds `data`, JSON, in the element "data".

    Its policy admits pictures inside the page and this one script, and nothing else.
    """
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; "
        "form-action 'none'"
    )
    known = "" if data is None else f'<script type="application/json" id="data">{embedded(data)}</script>\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>{text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{MARK}\n'
        f'<style>{STYLE}{style}</style>\n</head>\n<body class="page">\n{content}\n{known}'
        f"{script and f'<script>{script}</script>'}\n</body>\n</html>\n"
    )


def embedded(data: Any) -> str:
    """Return JSON for an element of a page, in which no name can end the element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def text(value: object) -> str:
    """Return text as HTML, on one line and without control characters."""
    return escape(one_line(str(value)))


def short(name: str) -> str:
    """Return the name of an image; of a long one its end, and of one outside the dataset's folder its last part."""
    name = PurePath(name).name if PurePath(name).is_absolute() else name
    return name if len(name) <= MAX_NAME else "…" + name[-MAX_NAME:]


def image(source: str, name: str, size: int, kind: str = "") -> str:
    """Return a square picture of a `data:` URL, `size` pixels wide."""
    kind = kind and f' class="{kind}"'
    return f'<img{kind} alt="{text(name)}" title="{text(name)}" width="{size}" height="{size}" src="{source}">'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], marked: int | None = None) -> str:
    """Return a table of texts; `marked` is the number of a row."""
    lines = [f"<tr>{''.join(f'<th>{text(column)}</th>' for column in columns)}</tr>"]
    for number, row in enumerate(rows):
        mark = ' class="chosen"' if number == marked else ""
        lines.append(f"<tr{mark}>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


# Light or dark as the system is, on a wide screen or a phone; nested, so that a notebook around it is not affected.
STYLE = """
.page { color-scheme: light dark; --ink: #1d2430; --soft: #5a6472; --paper: #fff; --panel: #f4f6f9;
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
