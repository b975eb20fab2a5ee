"""A self-contained HTML page: no request leaves it, and what it shows of names is text."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Sequence
from functools import cache
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


@cache
def asset(name: str) -> str:
    """Return a style or a script of this folder; empty where there is none of this name."""
    file = Path(__file__).with_name(name)
    return file.read_text("utf-8") if file.exists() else ""


def document(title: str, content: str, kind: str = "", *, data: Any = None, live: bool = False) -> str:
    """Return a page with this content, of which `title` is text; `kind` names its style and its script in this folder.

    The script finds `data`, JSON, in the element "data". The page's policy admits pictures inside it and this one
    script, and if it is `live` requests to its own server, and nothing else.
    """
    script = asset(f"{kind}.js")
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    more = " blob:; connect-src 'self'" if live else ""
    policy = (
        f"default-src 'none'; img-src data:{more}; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; "
        "form-action 'none'"
    )
    known = "" if data is None else f'<script type="application/json" id="data">{embedded(data)}</script>\n'
    icon = '<link rel="icon" href="data:,">\n' if live else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>{text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{icon}{MARK}\n'
        f'<style>{asset("page.css")}{asset(f"{kind}.css")}</style>\n</head>\n<body class="page">\n'
        f"{main(title, content)}\n{known}"
        f"{script and f'<script>{script}</script>'}\n</body>\n</html>\n"
    )


def main(title: str, content: str) -> str:
    """Return the content of a page under its title."""
    return f"<main>\n<h1>{text(title)}</h1>\n{content}\n</main>"


def frame(page: str, *, scripts: bool = False) -> str:
    """Return a page inside the output of a notebook, apart from all else there."""
    allowed = "allow-scripts" if scripts else ""
    return f'<iframe sandbox="{allowed}" style="width:100%;height:48rem;border:0" srcdoc="{escape(page)}"></iframe>'


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


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], marked: Collection[int] = (), mark: str = "chosen"
) -> str:
    """Return a table of texts; `marked` are the numbers of rows that are of the class `mark`."""
    lines = [f"<tr>{''.join(f'<th>{text(column)}</th>' for column in columns)}</tr>"]
    for number, row in enumerate(rows):
        kind = f' class="{mark}"' if number in marked else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'
