"""`tlkit embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, device_options, json_option, max_bad_option, threads_option
from tlkit.cli.output import note_files, progress_bars, show, wrote
from tlkit.util.text import quoted


@click.command()
@click.argument("model", type=FilePath)
@click.argument("images", type=FilePath, nargs=-1, required=True)
@click.option("-o", "--out", type=FilePath, required=True, help="File to write; its name ends in .parquet or .npy.")
@max_bad_option
@device_options
@threads_option
@json_option
def command(model: Path, images: tuple[Path, ...], out: Path, max_bad: float, as_json: bool, **options: Any) -> None:
    """Write the features of IMAGES (files and folders) under MODEL, a bundle, trunk.onnx or model.onnx.

    One row per image, in the order of the paths. Parquet has the columns path, sha256 and features; next to an npy
    file, a CSV file holds the first two. Unreadable images are listed in a .rejects.csv file next to the result; the
    exit code is 3 if more than --max-bad are unreadable.

    \b
    Examples:
      tlkit embed run/ photos/ -o features.parquet
      tlkit embed run/onnx/fp32/trunk.onnx a.jpg b.jpg -o features.npy
    """
    from tlkit.api import embed, load
    from tlkit.data.decoding import check_max_bad

    opened = load(model, graph="trunk", **options)
    with progress_bars() as progress:
        result = embed(opened, images, out, progress=progress)
    note_files(result)
    then = f"tlkit inspect {quoted(model)}"
    show({**result.to_json(), "next": then}, result, as_json)
    wrote(out, then=then)
    check_max_bad(result.rejected, result.images, max_bad)
