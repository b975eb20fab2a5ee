"""The verbs of the Python API that show what a bundle, a graph or a model is and does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tlkit import resolve
from tlkit.errors import UsageError
from tlkit.progress import shown
from tlkit.resolve import CPU, StrPath
from tlkit.util.files import local_path
from tlkit.util.locks import claim

if TYPE_CHECKING:
    from tlkit.inspection import Inspection
    from tlkit.looking.run import Look
    from tlkit.plugin.contract import Progress
    from tlkit.reporting.card import Card
    from tlkit.reporting.run import Report
    from tlkit.runtime.model import Model
    from tlkit.suggesting.run import Suggestions


def report(
    model: Model | StrPath,
    source: StrPath,
    out: StrPath | None = None,
    *,
    against: Model | StrPath | None = None,
    split: str | None = None,
    pictures: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Return what a model gets right and wrong on a labelled dataset, and why; in a notebook it shows its page.

    `model`, and `against`, another one of the same classes, are what `load` returned, a bundle or a graph. The split
    is chosen as by `evaluate`. `out` names an HTML file to write the page to, with `predictions.parquet` beside it.
    Without `pictures` the page holds none.
    """
    from tlkit.pages.html import check
    from tlkit.reporting import predictions
    from tlkit.reporting.run import report

    place = resolve.optional_path(out)
    if place is not None:
        check(place)
        predictions.check(predictions.beside(place))
    with claim(place), shown(progress) as bars:
        other = None if against is None else resolve.opened(against)
        found = report(
            resolve.opened(model), local_path(source), against=other, split=split, pictures=pictures, progress=bars
        )
        if place is not None and found.save(place) is None:
            resolve.warn('predictions.parquet needs pyarrow, and is not written; run: pip install "tlkit[parquet]"')
    return found


def look(
    bundle: StrPath,
    image: StrPath,
    out: StrPath | None = None,
    *,
    data: StrPath | None = None,
    images: int = 200,
    channels: int = 6,
    progress: Progress | None = None,
) -> Look:
    """Return what the network of an exported bundle sees in an image; in a notebook it shows its page.

    That is the filters of the first layer, the activations at every stage, the evidence for the label, and of so many
    `channels` of each stage the patches that excite them most, of up to so many `images` of the dataset `data`, by
    default of the training images if they are on this machine. `out` names an HTML file to write the page to.
    """
    from tlkit.looking.run import look
    from tlkit.model.reference_images import dataset, source, spread
    from tlkit.pages.html import check

    for name, number in (("images", images), ("channels", channels)):
        if number < 1:
            raise UsageError(f"{name} must be at least 1, not {number}")
    place = resolve.optional_path(out)
    if place is not None:
        check(place)
    trained, folder = resolve.trained_modules(bundle), resolve.optional_path(data)
    known = folder is not None or source(trained.bundle) is not None
    samples = spread(dataset(trained.bundle, folder)[1].samples, images) if known else []
    with resolve.opened(bundle) as model, claim(place), shown(progress) as bars:
        found = look(model, *trained.maps_graph(), local_path(image), samples, channels, bars)
        if place is not None:
            found.save(place)
    return found


def card(
    bundle: StrPath,
    out: StrPath | None = None,
    *,
    data: StrPath | None = None,
    split: str | None = None,
    progress: Progress | None = None,
) -> Card:
    """Return the model card of a bundle, in the format of Hugging Face: data, license, metrics, limits and pictures.

    With `data`, a labelled dataset, it has the metrics and findings of a report on that as well, by the exported graph;
    the split is chosen as by `evaluate`. `out` names a folder, the bundle itself too, to write README.md and pictures
    to. A card that somebody edited is not replaced.
    """
    from tlkit.model.bundle import reading_fields
    from tlkit.reporting.card import card, check
    from tlkit.reporting.run import report

    if data is None and split is not None:
        raise UsageError("a split is of data")
    place, opened = resolve.optional_path(out), resolve.open_bundle(bundle)
    check(place)
    found = None
    with claim(place, inside=place is not None and place.is_dir()), shown(progress) as bars:
        if data is not None:
            with resolve.opened(bundle) as model:
                found = report(model, local_path(data), split=split, pictures=False, progress=bars)
        with reading_fields(opened.root):
            made = card(opened, found)
        if place is not None:
            made.save(place)
    return made


def suggest(
    model: Model | StrPath,
    images: Sequence[StrPath] | StrPath,
    out: StrPath | None = None,
    *,
    count: int = 50,
    html: StrPath | None = None,
    progress: Progress | None = None,
) -> Suggestions:
    """Return which of some unlabelled images, files or folders, to label next for a model, the most useful first.

    `model` is what `load` returned, a bundle or a graph. `out` names a CSV file to write, with an empty column for the
    labels, and `html` a page with the images.
    """
    from tlkit.pages.html import check as check_page
    from tlkit.pages.html import write
    from tlkit.suggesting.run import check, suggest

    if count < 1:
        raise UsageError(f"count must be at least 1, not {count}")
    place, page = resolve.optional_path(out), resolve.optional_path(html)
    for file, refuse in ((place, check), (page, check_page)):
        if file is not None:
            refuse(file)
    found = resolve.image_files(images)
    with claim(place), shown(progress) as bars:
        result = replace(suggest(resolve.opened(model), found.files, count, bars), skipped=found.skipped)
        if place is not None:
            result.save(place)
        if page is not None:
            write(page, result.page)
    return result


def inspect(path: StrPath) -> Inspection:
    """Return what a bundle, checked as a whole, or an exported graph of any target says of itself."""
    from tlkit.inspection import inspect

    return inspect(local_path(path), resolve.opener(CPU, allow_cpu=False, trust=False))
