"""`tlkit bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlkit.cli.common import FilePath, host, json_option, offers, progress_bars, show, trust_option, wrote
from tlkit.errors import ArtefactError, ResourceError
from tlkit.files import quoted
from tlkit.plugin.contract import option_fields

if TYPE_CHECKING:
    from tlkit.deploy.bench import Benchmark
    from tlkit.model.bundle import Bundle
    from tlkit.plugin.contract import Session

MOST = 1024  # images in a batch
TORCH = "torch"  # no target: the trained modules themselves


def _names(_context: click.Context, _parameter: click.Parameter, given: str | None) -> tuple[str, ...] | None:
    """Names separated by commas."""
    return None if given is None else tuple(dict.fromkeys(name.strip() for name in given.split(",")))


def _sizes(_context: click.Context, _parameter: click.Parameter, given: str | None) -> tuple[int, ...]:
    """Numbers separated by commas."""
    if given is None:
        return ()
    numbers = [name.strip() for name in given.split(",")]
    if not all(number.isdecimal() and 1 <= int(number) <= MOST for number in numbers):
        raise click.BadParameter(f"{given!r} is not a list of numbers from 1 to {MOST}, as in 1,8,32")
    return tuple(dict.fromkeys(map(int, numbers)))


@click.command(short_help="Measure how fast what was exported from a bundle is.")
@click.argument("bundle", type=FilePath)
@click.option(
    "--target", "targets", callback=_names, metavar="NAME,...", help="Default: all that run here; torch: PyTorch."
)
@click.option("--precision", "precisions", callback=_names, metavar="NAME,...", help="Default: all.")
@click.option(
    "--batch",
    "batches",
    callback=_sizes,
    metavar="N,...",
    default="1,8,32",
    show_default=True,
    help="Images in a call.",
)
@click.option(
    "--threads", callback=_sizes, metavar="N,...", help="Cores of a call, one side for each; default: all of them."
)
@click.option("--plot", "picture", type=FilePath, help="Draw throughput against latency to a .png, .svg or .pdf.")
@trust_option
@json_option
def command(
    bundle: Path,
    targets: tuple[str, ...] | None,
    precisions: tuple[str, ...] | None,
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    picture: Path | None,
    trust_engine: bool,
    as_json: bool,
) -> None:
    """Measure how fast what was exported from BUNDLE is: latency of a call, images a second, memory.

    All sides take turns in five rounds, after a warm-up. Latencies are over all calls, images a second the median of
    the rounds with the least and the greatest. Decoding (with crop and resize, in one thread) is measured apart.

    \b
    Examples:
      tlkit bench run/
      tlkit bench run/ --target onnx --precision fp32,int8 --batch 1,16 --json
      tlkit bench run/ --target onnx,torch --threads 1,2
      tlkit bench run/ --plot speed.png
    """
    if picture is not None:
        from tlkit.deploy.plot import check_plot

        check_plot(picture)
    from tlkit.deploy.bench import benchmark
    from tlkit.model.bundle import open_bundle

    opened = open_bundle(bundle)
    openers = dict(_openers(opened, targets, precisions, threads, trust_engine))
    with progress_bars() as bars:
        result = benchmark(opened, openers, batches, progress=bars)

    exported = [speed for speed in result.speeds if not speed.name.startswith(TORCH)]
    then = f"tlkit export {quoted(bundle)} --onnx"
    if exported:
        fastest = max(exported, key=lambda speed: speed.rate).name.split(",")[0]
        then = f"tlkit predict {quoted(bundle / fastest)} IMAGE..."
    facts = {
        "decoding": result.decoding.to_json(),
        "speeds": [speed.to_json() for speed in result.speeds],
        "next": then,
    }
    show(facts, list(_lines(result)), as_json)
    if picture is not None:
        from tlkit.deploy.plot import plot_speeds

        plot_speeds(result.speeds, picture)
    wrote(picture, then=then)


def _openers(
    bundle: Bundle,
    targets: tuple[str, ...] | None,
    precisions: tuple[str, ...] | None,
    threads: tuple[int, ...],
    trust: bool,
) -> Iterator[tuple[str, Callable[[], Session]]]:
    """What opens the model of each by-product that was asked for, by the by-product's name."""
    from tlkit.deploy import built
    from tlkit.deploy.opening import open_target

    if TORCH in (targets or ()):
        from tlkit.deploy.trained import TrainedSession

        yield f"{TORCH}/fp32", partial(TrainedSession, bundle, *offers(bundle))
        targets = tuple(name for name in targets or () if name != TORCH)
        if not targets:
            return
    found = built.found(bundle.root)
    wanted = [place for place in found if place[0] in (targets or place) and place[1] in (precisions or place)]
    missing = [name for name in targets or () if name not in {place[0] for place in wanted}]
    missing += [name for name in precisions or () if name not in {place[1] for place in wanted}]
    if missing or not wanted:
        what = f"nothing was exported from it{f' for {missing[0]}' if missing else ''} yet"
        raise ArtefactError(what, file=bundle.root, do=built.command(bundle.root))
    for target, precision in wanted:
        try:
            offer = host().get("target", target)
            file = built.graph_file(bundle.root, "model", target, precision)
            open_target(offer, file, trust=trust)
        except ResourceError as error:
            if targets is not None or len(wanted) == 1:
                raise
            click.echo(f"passed over {target}/{precision}: {error.what}", err=True)
            continue
        if "threads" not in {field.name for field in option_fields(offer)}:
            yield f"{target}/{precision}", partial(open_target, offer, file, trust=trust)
            continue
        for number in threads or (0,):
            name = f"{target}/{precision}" + (f", {number} thread{'s' if number > 1 else ''}" if number else "")
            yield name, partial(open_target, replace(offer, threads=number), file, trust=trust)


def _lines(result: Benchmark) -> Iterator[str]:
    width = max(len(speed.name) for speed in result.speeds)
    yield f"{'':<{width}}  batch   p50 ms   p90 ms   p99 ms  images/s (least to greatest)  memory MiB"
    for speed in result.speeds:
        latency = "".join(f"{speed.latency[name]:>9.2f}" for name in ("p50", "p90", "p99"))
        rate = f"{speed.rate:.1f} ({min(speed.rates):.1f} to {max(speed.rates):.1f})"
        memory = "-" if speed.memory is None else f"{speed.memory:.0f}"
        yield f"{speed.name:<{width}}  {speed.batch:>5}{latency}  {rate:<28}  {memory:>10}"
    decoding = result.decoding
    rate = f"{decoding.rate:.1f} ({min(decoding.rates):.1f} to {max(decoding.rates):.1f})"
    yield f"decoding {decoding.pictures} pictures, one thread: p50 {decoding.latency['p50']:.2f} ms, {rate} images/s"
