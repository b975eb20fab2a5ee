"""`tlkit embed`."""

from __future__ import annotations

from pathlib import Path

import click

from tlkit.cli.common import (
    FilePath,
    check_max_bad,
    device_options,
    json_option,
    max_bad_option,
    open_model,
    progress_bars,
    rejected,
    show,
    wrote,
)
from tlkit.util.text import quoted


@click.command(short_help="Write the features of images to a Parquet or npy file.")
@click.argument("model", type=FilePath)
@click.argument("images", type=FilePath, nargs=-1, required=True)
@click.option("-o", "--out", type=FilePath, required=True, help="A name that ends in .parquet or .npy.")
@max_bad_option
@device_options
@json_option
def command(
    model: Path, images: tuple[Path, ...], out: Path, device: str, allow_cpu: bool, max_bad: float, as_json: bool
) -> None:
    """Write the features of IMAGES (files and folders) under MODEL, a bundle, trunk.onnx or model.onnx.

    A row for each image, in the order of the paths. Parquet has the columns path, sha256 and features; beside an npy
    file the first two stand in a CSV. Images that can't be used are listed in a .rejects.csv beside the result, and if
    there are more than --max-bad of them the exit code is 3.

    \b
    Examples:
      tlkit embed run/ photos/ -o features.parquet
      tlkit embed run/onnx/fp32/trunk.onnx a.jpg b.jpg -o features.npy
    """
    from tlkit.data.dataset import images as find
    from tlkit.runtime.embedding import embed

    opened = open_model(model, device=device, allow_cpu=allow_cpu, graph="trunk")
    files = find(images)
    with progress_bars() as bars:
        embedded = embed(opened, files, out, bars("embedding", len(files)))

    for name, reason in embedded.rejected.items():
        rejected(name, reason)
    then = f"tlkit inspect {quoted(model)}"
    show(
        {"out": str(out), "rows": embedded.rows, "width": embedded.width, "rejected": embedded.rejected, "next": then},
        [f"{embedded.rows} rows of {embedded.width} features, {len(embedded.rejected)} images rejected"],
        as_json,
    )
    wrote(out, then=then)
    check_max_bad(embedded.rejected, len(files), max_bad)
