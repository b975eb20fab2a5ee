"""`tlkit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, device_options, json_option, trust_option
from tlkit.cli.output import note, progress_bars, show, wrote
from tlkit.util.text import quoted

NUMBER = click.IntRange(1, 1024)


@click.command(short_help="Measure latency and throughput of a bundle's exports.")
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
@device_options
@trust_option
@json_option
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
    if picture is not None:
        from tlkit.evaluation.plot import check_plot

        check_plot(picture)
    from tlkit import api
    from tlkit.util.locks import claim

    click.get_current_context().with_resource(claim(picture))

    with progress_bars() as progress:
        result = api.benchmark(bundle, progress=progress, **options)
    note("skipped", result.skipped)
    then = f"tlkit export {quoted(bundle)} --onnx"
    if result.fastest is not None:
        then = f"tlkit predict {quoted(bundle / result.fastest)} IMAGE..."
    show({**result.to_json(), "next": then}, result, as_json)
    if picture is not None:
        result.plot(picture)
    wrote(picture, then=then)
