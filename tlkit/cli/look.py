"""`tlkit look`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, shared
from tlkit.cli.output import done, progress_bars
from tlkit.util.text import quoted


@click.command()
@click.argument("bundle", type=FilePath)
@click.argument("image", type=FilePath)
@click.option("-o", "--out", type=FilePath, required=True, help="The .html file to write.")
@click.option("--data", type=FilePath, help="Images to find patches in; the training images by default.")
@click.option("--images", type=click.IntRange(1), default=200, help="Number of images to find patches in.")
@click.option("--channels", type=click.IntRange(1), default=6, help="Number of channels to show of each stage.")
@shared("threads", "json")
def command(bundle: Path, image: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Write a page about what the network of BUNDLE, exported to ONNX, sees in IMAGE.

    It shows the evidence for the label, the filters of the first layer, the activations at every stage, and, for the
    channels that IMAGE excites most, the patches of the training images that excite them most.

    \b
    Examples:
      tlkit look run/ a.jpg -o look.html
      tlkit look run/ a.jpg -o look.html --data photos/ --images 1000 --channels 12
    """
    from tlkit.insight import look

    with progress_bars() as progress:
        result = look(bundle, image, out, progress=progress, **options)
    then = f"tlkit report {quoted(bundle)} photos/ -o report.html"
    done(result, as_json, then=then, out=out)
