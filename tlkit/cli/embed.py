"""`tlkit embed`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, PlacePath, columns, shared
from tlkit.cli.output import done, progress_bars, show
from tlkit.errors import UsageError
from tlkit.util.text import quoted


@click.command()
@click.argument("model", type=FilePath, required=False)
@click.argument("images", nargs=-1)
@click.option("-o", "--out", type=PlacePath, help="File that ends in .parquet or .npy; or a job's folder or address.")
@click.option("--status", "place", type=PlacePath, help="Print the state of a job, and do nothing else.")
@shared("job", "set", "max_bad", "any_device", "threads", "json")
def command(
    model: Path | None, images: tuple[str, ...], out: Path | str, place: Path | str, as_json: bool, **given: Any
) -> None:
    """Write the features of IMAGES (files, folders, archives, tables) under MODEL, a bundle, trunk.onnx or model.onnx.

    One row per image, in the order of the paths. Parquet has the columns path, sha256 and features; next to an npy
    file, a CSV file holds the first two. Unreadable images are listed in a .rejects.csv file next to the result; the
    exit code is 3 if more than --max-bad are unreadable. A folder is a job that resumes: see docs/scale.md.

    \b
    Examples:
      tlkit embed run/ photos/ -o features.parquet
      tlkit embed run/ photos/ -o features/ --workers 8
      tlkit embed run/ photos/ -o features/ --ray
      tlkit embed --status features/
    """
    from tlkit.features import embedding_status

    if place is not None:
        found = embedding_status(place)
        show(found.to_json(), found, as_json)
        return
    if model is None or not images or out is None:
        raise UsageError("MODEL, IMAGES and -o are needed", do="see: tlkit embed --help")
    _embed(model, images, out, as_json, **given)


def _embed(model: Path, images: tuple[str, ...], out: Path | str, as_json: bool, **given: Any) -> None:
    from tlkit.data.decoding import check_max_bad
    from tlkit.features import embed

    settings = {name: given[name] for name in ("dtype", "vectors", "shard_rows") if given[name] is not None}
    asked = {name: given[name] for name in ("workers", "shard", "ray", "source", "device", "allow_cpu")}
    options = given["options"] | columns(given)
    with progress_bars() as progress:
        result = embed(model, images, out, **asked, options=options, settings=settings, progress=progress)
    then = "tlkit inspect " + quoted(model) if os.path.splitext(out)[1] else "tlkit embed --status " + quoted(out)
    done(result, as_json, then=then, out=out)
    check_max_bad(result.rejected, result.images, given["max_bad"], result.rejects)
