"""The advice as one HTML file that needs no other: no script, no address, pictures inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tlkit.advice import pictures
from tlkit.advice.analysis import Sight
from tlkit.advice.page import seconds
from tlkit.advice.run import Advice
from tlkit.advice.style import STYLE
from tlkit.errors import UsageError
from tlkit.util.files import atomic_file, check_writable

if TYPE_CHECKING:
    from tlkit.audit.run import Audit

THUMBNAIL = 112
MOST_SUSPECTS = 24  # of each kind that are shown
MOST_CLASSES = 20  # with a bar of their own


def check(file: Path) -> None:
    """Refuse, before any work, a page that could not be written."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise UsageError("not a kind of page", file=file, do="end its name in .html")
    check_writable(file)


def write(file: Path, advice: Advice, found: Audit | None, then: str) -> None:
    """Write the page, whole or not at all."""
    check(file)
    title = f"Advice for {escape(str(advice.source))}"
    body = "\n".join(_body(advice, found, then))
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )
    with atomic_file(file) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _body(advice: Advice, found: Audit | None, then: str) -> Iterator[str]:
    yield _verdict(advice, then)
    yield from _data(advice)
    for sight in advice.sights:
        yield from _backbone(sight, advice)
    if advice.heads:
        yield "<h2>Heads</h2>"
        yield f"<p>Each cross-validated on the features of {escape(advice.heads[0].stage)}.</p>"
        ordered = sorted(advice.heads, key=lambda each: -each.accuracy)
        yield _table(
            ["head", "stage", "accuracy", "log-loss, nats"],
            [[each.head, each.stage, f"{each.accuracy:.1%}", f"{each.log_loss:.3f}"] for each in ordered],
            [each.head == advice.recommendation.head for each in ordered],
        )
    if advice.trials:
        yield "<h2>Trials</h2>"
        rows = [[t["what"], f"{t['accuracy']:.1%}", seconds(t["seconds"])] for t in advice.trials]
        yield _table(["what", "accuracy on val", "time"], rows)
    yield from _maps(advice)
    if found is not None:
        yield from _audit(advice, found)


def _verdict(advice: Advice, then: str) -> str:
    chosen = advice.recommendation
    if not chosen.sure:
        lacking = "".join(f"<li>{escape(reason)}</li>" for reason in chosen.reasons)
        more = "<p>More images of each class, each another picture, would let this say something.</p>"
        what = f'<p class="what">NOT ENOUGH TO TELL</p><ul>{lacking}</ul>{more}'
        return f'<section class="verdict unsure">{what}{_command("The cautious way:", then)}</section>'
    says = f"{chosen.strategy}, {chosen.backbone} up to {chosen.cut}, {chosen.head} head"
    figures = {}
    if chosen.accuracy is not None:
        figures["accuracy to expect (95 %)"] = f"{chosen.accuracy[0]:.1%} to {chosen.accuracy[1]:.1%}"
    if chosen.seconds is not None:
        figures["time on this machine"] = f"about {seconds(chosen.seconds)}"
    figures["the images and those of the pretraining"] = advice.sight.shift.likeness
    if chosen.trainable:
        rates = "".join(f", {name} {rate:g}" for name, rate in chosen.rates.items())
        figures["stages that move"] = f"{chosen.trainable}{rates}"
    cards = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in figures.items())
    rule = [] if chosen.case is None else [f"the rule: {chosen.case}: {chosen.rule}"]
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in (*rule, *chosen.reasons))
    return (
        f'<section class="verdict"><p class="label">RECOMMENDED</p><p class="what">{escape(says)}</p>'
        f'<dl class="cards">{cards}</dl><ul>{reasons}</ul>{_command("To do it:", then)}</section>'
    )


def _command(said: str, then: str) -> str:
    return f"<p>{said}</p><pre><code>{escape(then)}</code></pre>"


def _data(advice: Advice) -> Iterator[str]:
    facts = advice.facts
    yield "<h2>The data</h2>"
    rows = [
        ["images to learn from", str(facts.images)],
        ["distinct pictures", str(facts.distinct)],
        ["images to validate on", str(len(advice.dataset.of("val")))],
        ["classes", str(facts.classes)],
        ["median size", f"{facts.widths[1]} x {facts.heights[1]} pixels"],
        ["formats", ", ".join(facts.formats)],
    ]
    counts = sorted(facts.per_class.items(), key=lambda each: -each[1])
    most = max(1, counts[0][1])
    bars = "".join(
        f'<tr><td>{escape(label)}</td><td>{count}</td><td class="bar"><span style="width:{100 * count / most:.0f}%">'
        "</span></td></tr>"
        for label, count in counts[:MOST_CLASSES]
    )
    rest = f"<p>and {len(counts) - MOST_CLASSES} more classes</p>" if len(counts) > MOST_CLASSES else ""
    head = "<tr><th>class</th><th>images</th><th></th></tr>"
    yield f'<div class="side">{_table(["", ""], rows)}<div class="wide"><table>{head}{bars}</table>{rest}</div></div>'


def _backbone(sight: Sight, advice: Advice) -> Iterator[str]:
    shift, sure = sight.shift, sight.confidence
    yield f"<h2>{escape(sight.backbone.name)}</h2>"
    figure = "" if shift.overall is None else f" (shift {shift.overall:.3f} nats over {shift.images} images)"
    kind = f" It is {escape(shift.kind)}." if shift.kind else ""
    yield f"<p><strong>{shift.likeness}</strong>{figure}: {escape(shift.reason)}.{kind}</p>"
    if sure is not None:
        yield (
            f"<p>Its own classifier's greatest probability is {sure.greatest:.2f} on average, its entropy "
            f"{sure.entropy:.2f} of the most there could be.</p>"
        )
    if not sight.stages:
        return
    recommended = advice.recommendation
    chosen = recommended.cut if sight.backbone.name == recommended.backbone else None
    yield "<h3>Accuracy and shift against depth</h3>"
    yield pictures.legend(
        {"linear probe, with its 95 % interval": "var(--first)", "nearest class mean": "var(--second)"}
        | ({"shift from the pretraining": "var(--third)"} if shift.stages else {})
    )
    yield f'<div class="wide">{pictures.depth(sight, chosen)}</div>'
    yield _stages(sight, chosen)


def _stages(sight: Sight, chosen: str | None) -> str:
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
    marked = [stage.name == chosen for stage in sight.stages]
    return _table(["stage", "width", "probe", "95 %", "nearest mean", "LogME", "H-score", "shift, nats"], rows, marked)


def _maps(advice: Advice) -> Iterator[str]:
    found = pictures.maps(advice) if advice.facts.images >= 3 else []
    if not found:
        return
    labels = advice.dataset.labels
    yield f"<h2>The images, by their features at {escape(advice.recommendation.cut)}</h2>"
    yield pictures.legend(dict(zip(labels, pictures.colors(len(labels)), strict=True)))
    figures = "".join(
        f"<figure><h3>{each.title}</h3>{each.svg}<figcaption>{each.axes}</figcaption></figure>" for each in found
    )
    yield f'<div class="maps">{figures}</div>'


def _audit(advice: Advice, found: Audit) -> Iterator[str]:
    yield "<h2>Audit</h2>"
    yield f"<pre>{escape(str(found))}</pre>"
    paths = {sample.name: sample.path for sample in advice.dataset.samples}
    if found.near_duplicates:
        yield "<h3>Duplicates</h3>"
        for pair in found.near_duplicates[:MOST_SUSPECTS]:
            names = [pair.first, pair.second]
            yield _suspect(paths, names, f"{' = '.join(names)} ({pair.problems})")
    if found.label_issues:
        yield "<h3>Label issues</h3>"
        for issue in found.label_issues[:MOST_SUSPECTS]:
            yield _suspect(paths, [issue.name], str(issue))


def _suspect(paths: Mapping[str, Path], names: Sequence[str], said: str) -> str:
    """Pictures beside each other, and what is wrong with them."""
    shown = ""
    for name in names:
        picture = pictures.thumbnail(paths[name], THUMBNAIL) if name in paths else None
        if picture is not None:
            shown += f'<img alt="{escape(name)}" width="{THUMBNAIL}" height="{THUMBNAIL}" src="{picture}">'
    return f'<figure class="suspect">{shown}<figcaption>{escape(said)}</figcaption></figure>'


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
    return f'<div class="wide"><table>{top}{"".join(lines)}</table></div>'
