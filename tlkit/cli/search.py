"""`tlkit search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, shared
from tlkit.cli.output import show, wrote
from tlkit.util.text import quoted


@click.command()
@click.argument("features", type=FilePath)
@click.argument("queries", type=FilePath, nargs=-1, required=True)
@click.option("-k", type=click.IntRange(1), default=10, help="Number of images to find for each query.")
@shared("transform")
@click.option("--approximate", is_flag=True, help="Search the index that `tlkit index` made: faster, not exact.")
@click.option("--model", type=FilePath, help="Bundle or graph that made FEATURES; a job knows its own.")
@click.option("--html", type=FilePath, help="Write a page with the images to this file.")
@shared("threads", "json")
def command(features: Path, queries: tuple[Path, ...], as_json: bool, **given: Any) -> None:
    """Find the images most similar to QUERIES in FEATURES, the folder of a job or a Parquet file of `tlkit embed`.

    The search is exact: every row is compared, in blocks, so that the memory does not grow with their number. Of more
    than a million rows an index is faster.

    \b
    Examples:
      tlkit search features/ a.jpg -k 5
      tlkit search features/ a.jpg --html hits.html
      tlkit search features.parquet a.jpg --model run/
      tlkit search features/ a.jpg --approximate
    """
    from tlkit.features import search

    result = search(features, queries, **given)
    show(result.to_json(), result, as_json)
    if given["html"] is not None:
        wrote(given["html"], then=f"open {quoted(given['html'])}")
