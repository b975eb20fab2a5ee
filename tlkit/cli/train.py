"""`tlkit train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit import defaults
from tlkit.cli.options import (
    FilePath,
    column_options,
    columns,
    complete,
    draw_options,
    json_option,
    max_bad_option,
    seed_option,
    set_option,
    strict_option,
    trainer_options,
    training_budget_option,
)
from tlkit.cli.output import note_files, progress_bars, show, wrote
from tlkit.util.text import quoted


@click.command()
@click.argument("source")
@click.option("-o", "--out", type=FilePath, required=True, help="Bundle to write; must not exist yet.")
@click.option("--backbone", default=defaults.DEFAULT_BACKBONE, shell_complete=complete("backbone"), help="Network.")
@click.option("--size", type=click.IntRange(1), help="Input size in pixels; the backbone's own by default.")
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
@set_option
@column_options
@draw_options
@max_bad_option
@strict_option
@click.option("--golden", type=click.IntRange(0), default=8, help="Validation images to copy to the bundle.")
@click.option("--golden-strip", is_flag=True, help="Keep no names of files, and no golden image with metadata.")
@seed_option
@trainer_options
@training_budget_option
@json_option
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
    note_files(result)
    then = f"tlkit export {quoted(out)} --{defaults.DEFAULT_TARGET}"
    show({**result.to_json(), "next": then}, result, as_json)
    wrote(out, then=then)
