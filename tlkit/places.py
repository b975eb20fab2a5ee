"""Resolution of places of images: folders, files, addresses and patterns to the sources that read them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tlkit import resolve
from tlkit.errors import DataError, UsageError
from tlkit.resolve import StrPath
from tlkit.util.files import is_address
from tlkit.util.patterns import is_pattern
from tlkit.util.text import listed, utf8

if TYPE_CHECKING:
    from tlkit.embedding.hits import Hit
    from tlkit.embedding.job import Job, Place
    from tlkit.embedding.manifest import Opened, Row
    from tlkit.plugin.contract import Source


def find_places(images: Sequence[StrPath] | StrPath, name: str | None, options: Mapping[str, object]) -> list[Place]:
    """Return the places that are named, each with the source that reads it: the one that accepts it, or that of `name`.

    Patterns such as `tars/{0000..0123}.tar` and `photos/*.parquet` are expanded. Raises DataError and UsageError.
    """
    from tlkit.embedding.job import Place
    from tlkit.plugin.options import to_json
    from tlkit.runtime.embedding import naming
    from tlkit.util.patterns import expand

    given = [images] if isinstance(images, str | os.PathLike) else images
    texts = [each for pattern in given for each in expand(os.fspath(pattern))]
    name_of, found = naming([Path(text) for text in texts if not is_address(text)]), []
    for text in texts:
        source = _source_of(text, name, options)
        facts = (source.name, *resolve.load_plugins().origin(source), to_json(source, local=True))
        place = text if is_address(text) else os.path.abspath(text)
        found.append(Place(place, *facts, name_of(text)))
    taken = {f"source.{option}" for each in found for option in each.options}
    if left := sorted({option for option in options if option.startswith("source.")} - taken):
        what = f"the source {listed(sorted({each.source for each in found}))} has no option {left[0]}"
        raise UsageError(what, file=listed(texts), do="see: tlkit plugins")
    return found


def labeled_images(source: StrPath, options: Mapping[str, object]) -> tuple[Path, dict[str, object]]:
    """Return the folder or table of labeled images that a source is, and the options that are not the source's.

    A folder and a table are used where they lie; what another source reads, or a pattern names, is unpacked first.
    """
    text = os.fspath(source)
    own = {key: value for key, value in options.items() if key.partition(".")[0] == "source"}
    rest = {key: value for key, value in options.items() if key not in own}
    if not own and os.path.isdir(text):
        return Path(text), rest
    if not own and not is_address(text) and not is_pattern(text):
        sources = [resolve.load_plugins().get("source", name) for name in resolve.load_plugins().names("source")]
        accepting = [each for each in sources if os.path.exists(text) and each.accepts(text)]
        if not accepting or any(each.in_place for each in accepting):
            return Path(text), rest  # reading it says what is wrong
    from tlkit.embedding.unpacked import unpacked

    return unpacked(open_places(find_places(text, None, own)), resolve.warn), rest


def _source_of(place: str, name: str | None, options: Mapping[str, object]) -> Source:
    """Return the source of a name, or the one that accepts a place, with those of the options that it has."""
    names = resolve.load_plugins().names("source") if name is None else [name]
    sources = {each: _with_its_options(resolve.load_plugins().get("source", each), options) for each in names}
    if name is not None:
        return sources[name]
    accepting = [each for each, source in sources.items() if source.accepts(place)]
    if len(accepting) == 1:
        return sources[accepting[0]]
    if accepting:
        do = f"choose one of them with --source: {', '.join(accepting)}"
        raise UsageError("several sources read it", file=place, do=do)
    if not is_address(place) and not os.path.exists(place):
        raise DataError("no such file or folder", file=place)
    raise DataError(f"no source reads it; installed: {', '.join(names)}", file=place)


def _with_its_options(source: Source, options: Mapping[str, object]) -> Source:
    """Return a source with those of the options set that it has; one that no source has is refused."""
    from tlkit.plugin.contract import option_fields

    host = resolve.load_plugins()
    fields = {name: option_fields(host.get("source", name)) for name in host.names("source")}
    others = {f"source.{field.name}" for each in fields.values() for field in each}
    others -= {f"source.{field.name}" for field in fields[source.name]}
    own = {key: value for key, value in options.items() if key not in others}
    found: Source = resolve.configured({"source": source.name}, own)["source"]
    return found


def image_reader(job: Job | None, parts: Mapping[str, int]) -> Callable[[Hit], bytes]:
    """Return what reads the image of a hit: from the places of its job, whose `parts` by key are known, or its path."""
    if job is None:
        return lambda hit: Path(hit.key).read_bytes()
    places = open_places(job.places)

    @functools.lru_cache(maxsize=4)
    def rows(part: int) -> dict[str, Row]:
        return {row.key: row for row in reversed(job.rows(part))}

    def read(hit: Hit) -> bytes:
        row = rows(parts[hit.key])[hit.key]
        return places[row.source].read(row)

    return read


def open_places(places: Sequence[Place]) -> list[Opened]:
    """Return places with their readers; of several, the keys of each begin with its name as it was given."""
    from tlkit.embedding.manifest import Opened

    opened = []
    for each in places:
        made_with = each.source, each.distribution, each.version, each.options
        source = resolve.load_plugins().require("source", *made_with, local=True)
        given = utf8(each.given) if len(places) > 1 else ""
        opened.append(Opened(source, each.place, source.open(each.place), given))
    return opened
