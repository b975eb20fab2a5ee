"""`tlkit suggest`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, shared
from tlkit.cli.output import done, progress_bars
from tlkit.util.text import quoted


@click.command()
@click.argument("model", type=FilePath)
@click.argument("images", type=FilePath, nargs=-1, required=True)
@click.option("-n", "--count", type=click.IntRange(1), default=50, help="Number of images to suggest.")
@click.option("-o", "--out", type=FilePath, required=True, help="The .csv file to write, with a column for labels.")
@click.option("--html", type=FilePath, help="Write a page with the images to this file.")
@shared("head", "device", "threads", "max_bad", "json")
def command(
    model: Path,
    images: tuple[Path, ...],
    count: int,
    out: Path,
    html: Path | None,
    max_bad: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Suggest which of the unlabelled IMAGES, files or folders, to label next for MODEL, a bundle or a model.onnx.

    Those are suggested that stand for most of what the model is uncertain of, or takes for no known class, and that
    differ from the training images and from each other. The table says why for each.

    \b
    Examples:
      tlkit suggest run/ unlabelled/ -n 50 -o label-next.csv
      tlkit suggest run/onnx/int8/model.onnx unlabelled/ -n 50 -o label-next.csv --html label-next.html
    """
    from tlkit.api import load
    from tlkit.data.decoding import check_max_bad
    from tlkit.insight import suggest

    with load(model, **options) as opened, progress_bars() as progress:
        result = suggest(opened, images, out, count=count, html=html, progress=progress)
    then = f"fill in the column label of {quoted(out)}, then train on these images as well"
    done(result, as_json, then=then, out=out)
    check_max_bad(result.rejected, result.images + len(result.rejected), max_bad)
