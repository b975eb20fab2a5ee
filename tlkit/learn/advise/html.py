"""The advice as one HTML file that needs no other: no script, no address, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tlkit.data.images import Rejected, load
from tlkit.errors import ResourceError, UsageError
from tlkit.files import atomic_file, check_writable
from tlkit.learn.advise import pictures
from tlkit.learn.advise.advice import Advice
from tlkit.learn.advise.evidence import Sight
from tlkit.learn.advise.page import seconds, summary
from tlkit.plugin.contract import Pixels

if TYPE_CHECKING:
    from tlkit.learn.audit.audit import Audit

SHOWN = Pixels(96, mean=(0.5,) * 3, std=(0.5,) * 3, crop=1.0, filter="bilinear")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } th, td { padding: .2rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 1px solid #999; }
tr.chosen { background: #e5f2e5; font-weight: 600; } img { max-width: 100%; height: auto; }
.verdict { background: #f3f6fa; border-left: 5px solid #36c; padding: .6rem 1rem; }
.unsure { border-color: #c80; } code { background: #eee; padding: .1rem .3rem; overflow-wrap: anywhere; }
figure { display: inline-block; margin: .3rem; width: 110px; font-size: .75rem; overflow-wrap: anywhere; }
"""


def check(file: Path) -> None:
    """Refuse, before any work, a page that could not be written."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise UsageError("not a kind of page", file=file, do="end its name in .html")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ResourceError("drawing needs matplotlib", file=file, do='run: pip install "tlkit[plot]"') from error
    check_writable(file)


def write(file: Path, advice: Advice, found: Audit | None, then: str) -> None:
    """Write the page, whole or not at all."""
    check(file)
    title = f"Advice for {escape(str(advice.source))}"
    body = "\n".join(_body(advice, found, then))
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )
    with atomic_file(file) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _body(advice: Advice, found: Audit | None, then: str) -> Iterator[str]:
    recommendation = advice.recommendation
    kind = "verdict" if recommendation.sure else "verdict unsure"
    said = "".join(f"<p>{escape(line.strip())}</p>" for line in summary(recommendation))
    yield f'<div class="{kind}">{said}<p><code>{escape(then)}</code></p></div>'
    yield "<h2>The data</h2>"
    yield _facts(advice)
    for sight in advice.sights:
        yield f"<h2>{escape(sight.backbone.name)}</h2>"
        shift = sight.shift
        yield f"<p><strong>{shift.likeness}</strong>: {escape(shift.reason)}. {escape(shift.kind)}</p>"
        if sight.stages:
            yield _stages(sight, advice)
    seen = [sight for sight in advice.sights if sight.stages]
    if seen:
        yield "<h2>Accuracy and shift against depth</h2>"
        yield _picture(pictures.depth(seen), "Accuracy and shift of every stage")
    if advice.heads:
        yield "<h2>Heads</h2>"
        yield _table(
            ["head", "stage", "cross-validated", "log-loss"],
            [[each.head, each.stage, f"{each.accuracy:.1%}", f"{each.log_loss:.3f}"] for each in advice.heads],
        )
    if advice.trials:
        yield "<h2>Trials</h2>"
        yield _table(
            ["what", "accuracy on val", "time"],
            [[t["what"], f"{t['accuracy']:.1%}", seconds(t["seconds"])] for t in advice.trials],
        )
    if advice.facts.images >= 3:
        yield "<h2>The images, by their features</h2>"
        yield _picture(pictures.maps(advice), "Maps of the images by principal components and t-SNE")
    if found is not None:
        yield "<h2>Audit</h2>"
        yield from _audit(advice, found)


def _facts(advice: Advice) -> str:
    facts = advice.facts
    rows = [
        ["images to learn from", str(facts.images)],
        ["distinct", str(facts.distinct)],
        ["classes", str(facts.classes)],
        ["smallest and largest class", f"{min(facts.per_class.values())}, {max(facts.per_class.values())}"],
        ["median size", f"{facts.widths[1]} x {facts.heights[1]}"],
        ["formats", ", ".join(facts.formats)],
    ]
    return _table(["", ""], rows)


def _stages(sight: Sight, advice: Advice) -> str:
    chosen = (advice.recommendation.backbone, advice.recommendation.cut)
    rows = []
    for stage in sight.stages:
        low, high = stage.probe.interval
        distance = sight.shift.stages.get(stage.name)
        rows.append(
            [
                stage.name,
                str(stage.width),
                f"{stage.probe.accuracy:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{stage.nearest.accuracy:.1%}",
                f"{stage.logme:.3f}",
                f"{stage.h_score:.2f}",
                "" if distance is None else f"{distance:.3f}",
            ]
        )
    marked = [(sight.backbone.name, stage.name) == chosen for stage in sight.stages]
    return _table(["stage", "width", "probe", "95 %", "nearest mean", "LogME", "H-score", "shift"], rows, marked)


def _audit(advice: Advice, found: Audit) -> Iterator[str]:
    yield "".join(f"<p>{escape(line)}</p>" for line in found.lines())
    by_name = {sample.name: sample.path for sample in advice.dataset.samples}
    if found.mislabelled:
        yield "<h3>Likely wrong labels</h3>"
        for each in found.mislabelled[:24]:
            said = f"{each.name}: is {each.label}, looks like {each.looks}"
            if (thumbnail := _thumbnail(by_name.get(each.name), said)) is not None:
                yield f"<figure>{thumbnail}<figcaption>{escape(said)}</figcaption></figure>"


def _thumbnail(path: Path | None, said: str) -> str | None:
    if path is None:
        return None
    try:
        picture = Image.fromarray(load(path, SHOWN))
    except Rejected:
        return None
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return _picture(buffer.getvalue(), said)


def _picture(png: bytes, said: str) -> str:
    return f'<img alt="{escape(said)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)

    listed = list(rows)
    marks = [*marked, *[False] * (len(listed) - len(marked))]
    lines = [
        f'<tr class="chosen">{cells("td", row)}</tr>' if mark else f"<tr>{cells('td', row)}</tr>"
        for row, mark in zip(listed, marks, strict=True)
    ]
    top = f"<tr>{cells('th', head)}</tr>" if any(head) else ""
    return f"<table>{top}{''.join(lines)}</table>"
