"""`tlkit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, shared
from tlkit.cli.output import claim_beside, done, note, progress_bars
from tlkit.util.text import quoted

NUMBER = click.IntRange(1, 1024)


@click.command()
@click.argument("bundle", type=FilePath)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="Target to measure; repeatable; torch: the trained modules; default: all that run here.",
)
@click.option("--precision", "precisions", multiple=True, help="Precision to measure; repeatable; default: all.")
@click.option(
    "--batch-size",
    "batch_sizes",
    type=NUMBER,
    multiple=True,
    default=(1, 8, 32),
    show_default=True,
    help="Images per call; repeatable.",
)
@click.option("--threads", type=NUMBER, multiple=True, help="Cores per call; repeatable; default: all of them.")
@click.option("--plot", "picture", type=FilePath, help="Draw throughput against latency to a .png, .svg or .pdf.")
@click.option("--tune", is_flag=True, help="Find and keep the fastest runtime config of the ONNX graphs.")
@shared("device", "trust", "json")
def command(bundle: Path, picture: Path | None, as_json: bool, **options: Any) -> None:
    """Measure the exports of BUNDLE: latency per call, throughput in images per second, memory.

    Runs are interleaved over five rounds after a warm-up. Latencies are over all calls; throughput is the median of the
    rounds (min to max). CPU is the processor time per call, all cores together. Decoding and resizing, in one thread,
    are measured apart.

    With --tune, threads, batch size and graph optimization are tried for the ONNX graphs. The fastest runtime config is
    kept: predict, embed and eval use it on machines like this one.

    \b
    Examples:
      tlkit bench run/
      tlkit bench run/ --target onnx --precision fp32 --precision int8 --batch-size 1 --batch-size 16 --json
      tlkit bench run/ --target onnx --target torch --threads 1 --threads 2
      tlkit bench run/ --plot speed.png
      tlkit bench run/ --tune
    """
    from tlkit import api
    from tlkit.evaluation.plot import check_plot

    claim_beside(picture, check_plot)
    with progress_bars() as progress:
        result = api.benchmark(bundle, progress=progress, **options)
    note("skipped", result.skipped)
    then = f"tlkit export {quoted(bundle)} --onnx"
    if result.fastest is not None:
        then = f"tlkit predict {quoted(bundle / result.fastest)} IMAGE..."
    done(result, as_json, then=then, out=picture, save=result.plot)
