"""`tlkit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, shared
from tlkit.cli.output import done, progress_bars
from tlkit.util.text import quoted


@click.command()
@click.argument("model", type=FilePath)
@click.argument("source", type=FilePath)
@click.option("-o", "--out", type=FilePath, required=True, help="The .html file to write.")
@click.option("--against", type=FilePath, help="Another bundle or graph of the same classes to compare with.")
@shared("split")
@click.option("--images/--no-images", "pictures", default=True, help="Show the images in the page.")
@shared("head", "device", "threads", "max_bad", "json")
def command(
    model: Path, source: Path, out: Path, against: Path | None, max_bad: float, as_json: bool, **options: Any
) -> None:
    """Write a page about what MODEL, a bundle or a model.onnx, gets right and wrong on SOURCE, and why.

    The page is one file that loads nothing else: verdict and what to do next, confusions, the most confident mistakes
    with the evidence for them and the nearest training images, calibration, slices, and a map of the images.
    predictions.parquet is written beside it.

    \b
    Examples:
      tlkit report run/ test/ -o report.html
      tlkit report run/ test/ -o report.html --against other/
      tlkit report run/onnx/int8/model.onnx photos/ --split val --no-images -o report.html
    """
    from tlkit.api import load
    from tlkit.data.decoding import check_max_bad
    from tlkit.insight import report
    from tlkit.pages.html import check

    check(out)
    shown = {name: options.pop(name) for name in ("split", "pictures")}
    opened = load(model, **options)
    with progress_bars() as progress:
        result = report(opened, source, out, against=against, progress=progress, **shown)
    then = f"tlkit predict {quoted(model)} {quoted(source) if source.is_dir() else 'IMAGE...'}"
    done(result, as_json, then=then, out=out)
    check_max_bad(result.rejected, result.metrics.images + len(result.rejected), max_bad)
