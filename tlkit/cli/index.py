"""`tlkit index`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, Number, shared
from tlkit.cli.output import show, wrote
from tlkit.util.text import quoted


@click.command()
@click.argument("features", type=FilePath)
@click.option("-k", type=click.IntRange(1), default=10, help="Number of neighbors that the recall is of.")
@shared("transform")
@click.option(
    "--min-recall",
    type=Number(0, 1, min_open=True),
    default=0.95,
    help="Share of the nearest that it must find; with less, nothing is written.",
)
@shared("threads", "json")
def command(features: Path, as_json: bool, **given: Any) -> None:
    """Index FEATURES, the folder of a job or a Parquet file of `tlkit embed`, for an approximate search.

    The neighbors of 256 rows are compared with those of the exact search; the recall is kept with the index, in a
    folder beside the features.

    \b
    Examples:
      tlkit index features/
      tlkit index features.parquet --min-recall 0.99
    """
    from tlkit.embedding.index import place_of
    from tlkit.features import index

    made = index(features, **given)
    show(made.to_json(), made, as_json)
    wrote(place_of(features), then=f"tlkit search {quoted(features)} IMAGE... --approximate")
