"""The page of suggestions: the images to label next, each with the reason, without a script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlkit.pages import html, svg
from tlkit.pages.html import text
from tlkit.util.text import counted

if TYPE_CHECKING:
    from tlkit.suggesting.run import Suggestion, Suggestions

PICTURE, MOST = 168, 200  # pixels of a side; suggestions that are shown


def page(found: Suggestions) -> str:
    """Return the page."""
    title = f"What to label next for {found.model}"
    known = (
        f"Compared with {counted(found.compared, 'training image')}."
        if found.compared
        else "The training images are not on this machine: only the images themselves were compared."
    )
    more = len(found.suggestions) - MOST
    rest = f" The first {MOST} are shown; the table has {more:,} more." if more > 0 else ""
    cards = "".join(_card(number, each) for number, each in enumerate(found.suggestions[:MOST], 1))
    content = (
        f'<section class="verdict"><p class="what">{counted(len(found.suggestions), "image")} to label, of '
        f"{found.images:,}</p><p>They stand for most of what the model is uncertain of or takes for no known class, "
        f"and differ from what is labelled and from each other. {known}{rest}</p></section>\n"
        f'<h2>The most useful first</h2>\n<div class="cards">{cards}</div>'
    )
    return html.document(title, content, "suggest")


def _card(number: int, each: Suggestion) -> str:
    name = html.short(str(each.path))
    source = svg.thumbnail(each.path, PICTURE)
    picture = "" if source is None else html.image(source, name, PICTURE)
    facts = [f"{each.predicted} {each.probability:.0%}", f"margin {each.margin:.2f}"]
    facts += [] if each.novelty is None else [f"novelty {each.novelty:.2f}"]
    return (
        f'<figure class="card">{picture}<figcaption>{number}. {text(each.why)}<small>{text(name)}</small>'
        f"<small>{text(', '.join(facts))}</small></figcaption></figure>"
    )
