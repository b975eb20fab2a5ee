"""`tlkit card`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, shared
from tlkit.cli.output import done, progress_bars
from tlkit.util.text import quoted


@click.command()
@click.argument("bundle", type=FilePath)
@click.option("-o", "--out", type=FilePath, help="Folder to write README.md to; the bundle by default.")
@click.option("--data", type=FilePath, help="Labelled images to report on, with BUNDLE's ONNX export.")
@shared("split", "threads", "json")
def command(bundle: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Write a model card of BUNDLE in the format of Hugging Face: data, license, metrics with intervals, and limits.

    README.md is written with its pictures in the folder card beside it, and nothing is sent anywhere. With --data the
    card has the metrics and the findings of a report on these images. A card that you edited is not replaced.

    \b
    Examples:
      tlkit card run/
      tlkit card run/ --data test/ -o card/
    """
    from tlkit.insight import card

    place = bundle if out is None else out
    with progress_bars() as progress:
        result = card(bundle, place, progress=progress, **options)
    then = f"read {quoted(place / 'README.md')}, name the license of the images, and publish the folder"
    done(result, as_json, then=then, out=place / "README.md")
