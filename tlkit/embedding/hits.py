"""Results of a search, and their page: each query with the images that are most similar to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tlkit.errors import TlkitError
from tlkit.pages import html as pages
from tlkit.pages.svg import thumbnail

SIDE = 160  # pixels of a thumbnail


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that is similar to a query."""

    key: str
    score: float
    row: int


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The hits of each query, best first, and how they were found."""

    queries: tuple[str, ...]
    hits: tuple[tuple[Hit, ...], ...]
    rows: int  # that were searched
    metric: str
    recall: float | None = None  # of the index, if the search was approximate

    def __repr__(self) -> str:
        lines = []
        for query, hits in zip(self.queries, self.hits, strict=True):
            lines += [query, *(f"  {hit.score:.4f}  {hit.key}" for hit in hits)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)


def write_page(file: Path, result: SearchResult, query: Callable[[int], bytes], image: Callable[[Hit], bytes]) -> None:
    """Write a self-contained page; `query` and `image` return the bytes of a query's and of a hit's image file."""
    parts = []
    for number, (name, hits) in enumerate(zip(result.queries, result.hits, strict=True)):
        shown = [_figure(partial(image, hit), hit.key, f"{hit.score:.4f}") for hit in hits]
        own = _figure(partial(query, number), Path(name).name, "query")
        items = "".join(f"<li>{each}</li>" for each in shown)
        parts.append(f'<section><ol><li class="query">{own}</li>{items}</ol></section>')
    how = "exact" if result.recall is None else f"approximate, with a recall of {result.recall:.3f}"
    about = f"The most similar of {result.rows:,} images by {result.metric}, {how}."
    pages.write(file, pages.document("Search", "\n".join([f"<p>{about}</p>", *parts]), "search"))


def _figure(read: Callable[[], bytes], name: str, said: str) -> str:
    picture = _thumbnail(read)
    shown = '<div class="none"></div>' if picture is None else f'<img src="{picture}" alt="">'
    return f"<figure>{shown}<figcaption>{pages.text(said)}<br>{pages.text(name)}</figcaption></figure>"


def _thumbnail(read: Callable[[], bytes]) -> str | None:
    """Return a `data:` URL; None for an image that can't be read any more."""
    try:
        return thumbnail(read(), SIDE, whole=True)
    except (TlkitError, OSError):
        return None
