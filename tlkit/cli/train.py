"""`tlkit train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit import defaults
from tlkit.cli.options import FilePath, columns, complete, shared
from tlkit.cli.output import done, progress_bars
from tlkit.util.text import quoted


@click.command()
@click.argument("source")
@click.option("-o", "--out", type=FilePath, required=True, help="Bundle to write; must not exist yet.")
@click.option("--backbone", default=defaults.DEFAULT_BACKBONE, shell_complete=complete("backbone"), help="Network.")
@shared("size")
@click.option("--cut", help="Last stage to keep, or stages to join, as stage4+last. With auto, it stays frozen.")
@click.option(
    "--strategy",
    default="auto",
    shell_complete=complete("strategy"),
    help="Training strategy; auto follows `tlkit advise` and keeps the advice in the bundle.",
)
@click.option(
    "--head",
    shell_complete=complete("head"),
    help=f"Classifier on the features; chosen by auto, or {defaults.DEFAULT_HEAD} with another strategy.",
)
@shared("set", "column", "draw", "max_bad", "strict")
@click.option("--golden", type=click.IntRange(0), default=8, help="Validation images to copy to the bundle.")
@click.option("--golden-strip", is_flag=True, help="Keep no names of files, and no golden image with metadata.")
@shared("seed", "trainer", "training_budget", "json")
def command(source: str, out: Path, as_json: bool, **options: Any) -> None:
    """Train on SOURCE and write a bundle.

    SOURCE is a folder with one folder per class, a folder with train/ and val/ (and test/) of such, a CSV or Parquet
    table with the columns path, label and optionally split, or what another source reads, such as a tar. The strategy
    auto trains what `tlkit advise` recommends; a head or a cut that is named stays. If the images don't suffice for a
    recommendation, it trains a classifier on the features of the frozen network.

    \b
    Examples:
      tlkit train photos/ -o run/
      tlkit train photos.csv -o run/ --backbone NAME --cut stage4 --head NAME --set head.OPTION=VALUE
      tlkit train photos/ -o run/ --strategy NAME --set strategy.trainable=2 --set strategy.epochs=5
      torchrun --nproc-per-node 4 -m tlkit train photos/ -o run/ --strategy NAME
    """
    from tlkit.api import train

    options["options"] |= columns(options)
    with progress_bars() as progress:
        result = train(source, out, progress=progress, **options)
    then = f"tlkit export {quoted(out)} --{defaults.DEFAULT_TARGET}"
    done(result, as_json, then=then, out=out)
