"""`tlkit bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlkit.cli.common import (
    FilePath,
    components,
    device_options,
    json_option,
    on_device,
    progress_bars,
    show,
    target_of,
    trust_option,
    wrote,
)
from tlkit.errors import ArtifactError, TlkitError
from tlkit.plugin.contract import option_fields
from tlkit.util.text import quoted

if TYPE_CHECKING:
    from tlkit.benchmarking.run import Benchmark
    from tlkit.benchmarking.tuning import Tuned
    from tlkit.model.bundle import Bundle
    from tlkit.plugin.contract import Progress, Session

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
@click.option("--tune", is_flag=True, help="Find and keep what runs the ONNX graphs fastest on machines like this one.")
@device_options
@trust_option
@json_option
def command(
    bundle: Path,
    targets: tuple[str, ...] | None,
    precisions: tuple[str, ...] | None,
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    picture: Path | None,
    tune: bool,
    device: str,
    allow_cpu: bool,
    trust_engine: bool,
    as_json: bool,
) -> None:
    """Measure how fast what was exported from BUNDLE is: latency of a call, images a second, memory.

    All sides take turns in five rounds, after a warm-up. Latencies are over all calls, images a second the median of
    the rounds with the least and the greatest; beside them the time that a call costs the processor, all cores
    together, and the GPU. Decoding and resizing, in one thread, are measured apart.

    With --tune, threads, batch and rewriting of the graph are tried for the ONNX graphs, and what is fastest where
    there are many images is kept: predict, embed and eval heed it on machines like this one.

    \b
    Examples:
      tlkit bench run/
      tlkit bench run/ --target onnx --precision fp32,int8 --batch 1,16 --json
      tlkit bench run/ --target onnx,torch --threads 1,2
      tlkit bench run/ --plot speed.png
      tlkit bench run/ --tune
    """
    if picture is not None:
        from tlkit.evaluation.plot import check_plot

        check_plot(picture)
    from tlkit.benchmarking.run import benchmark
    from tlkit.model import exports
    from tlkit.model.bundle import open_bundle

    opened = open_bundle(bundle)
    found = _by_products(opened, targets, precisions)
    tunable = [precision for target, precision in found if target == exports.TARGET] if tune else []
    if tune and not tunable:
        raise click.UsageError("--tune is for ONNX graphs, and none of them is among what was asked for")
    where = partial(on_device, device=device, allow_cpu=allow_cpu)
    openers = dict(_openers(opened, found, threads, trust_engine, where))
    explicit = targets is not None or len(openers) == 1
    with progress_bars() as bars:
        result = benchmark(opened, openers, batches, lacking=None if explicit else _passed_over, progress=bars)
        # Last, as memory that it has used would be told of none of the sides.
        tuned = {f"{exports.TARGET}/{precision}": _tune(opened, precision, bars) for precision in tunable}

    exported = [speed for speed in result.speeds if not speed.name.startswith(TORCH)]
    then = f"tlkit export {quoted(bundle)} --onnx"
    if exported:
        fastest = max(exported, key=lambda speed: speed.rate).name.split(",")[0]
        then = f"tlkit predict {quoted(bundle / fastest)} IMAGE..."
    facts = {
        "tuned": {place: tuning.to_json() for place, tuning in tuned.items()},
        "stages": [stage.to_json() for stage in result.stages],
        "speeds": [speed.to_json() for speed in result.speeds],
        "next": then,
    }
    show(facts, [*_lines(result), *(f"{place}: {tuning.summary()}" for place, tuning in tuned.items())], as_json)
    if picture is not None:
        from tlkit.evaluation.plot import plot_speeds

        plot_speeds(result.speeds, picture)
    wrote(picture, then=then)


def _by_products(
    bundle: Bundle, targets: tuple[str, ...] | None, precisions: tuple[str, ...] | None
) -> list[tuple[str, str]]:
    """The target and precision of each by-product that was asked for, and PyTorch's."""
    from tlkit.model import exports

    known = exports.found(bundle.root)
    if TORCH in (targets or ()):
        known.insert(0, (TORCH, exports.PRECISION))
    wanted = [place for place in known if place[0] in (targets or place) and place[1] in (precisions or place)]
    named = [("--target", name) for name in targets or () if name not in {place[0] for place in wanted}]
    named += [("--precision", name) for name in precisions or () if name not in {place[1] for place in wanted}]
    if named:
        option, name = named[0]
        do = exports.command(bundle.root, **({"target": name} if option == "--target" else {}))
        raise ArtifactError(f"nothing was exported from it for {name} yet", file=bundle.root, do=do)
    if not wanted:
        raise ArtifactError("nothing was exported from it yet", file=bundle.root, do=exports.command(bundle.root))
    return wanted


def _openers(
    bundle: Bundle,
    found: Sequence[tuple[str, str]],
    threads: tuple[int, ...],
    trust: bool,
    where: Callable[[Callable[[str], Session]], Session],
) -> Iterator[tuple[str, Callable[[], Session]]]:
    """What opens the model of each, by the by-product's name; `where` opens on the device that was asked for."""
    from tlkit.model import exports
    from tlkit.runtime.engine import IncompatibleEngine, open_target

    for target, precision in found:
        if target == TORCH:
            from tlkit.verification.trained import TrainedSession

            yield f"{TORCH}/{precision}", partial(TrainedSession, bundle, *components(bundle))
            continue
        file = exports.graph_file(bundle.root, "model", target, precision)
        try:
            component: Any = target_of(target)  # a dataclass, whose fields depend on the target
        except IncompatibleEngine as error:
            yield f"{target}/{precision}", partial(_refuse, error)
            continue
        options = {field.name for field in option_fields(component)}

        def opened(device: str, component: Any, file: Path = file) -> Session:
            on = replace(component, device=device) if component.name == exports.TARGET else component
            return open_target(on, file, trust=trust)

        for number in threads if threads and "threads" in options else (0,):
            name = f"{target}/{precision}" + (f", {number} thread{'s' if number > 1 else ''}" if number else "")
            chosen = replace(component, threads=number) if number else component
            yield name, partial(where, partial(opened, component=chosen))


def _refuse(error: TlkitError) -> Session:
    """What opens a side that can't be opened."""
    raise error


def _passed_over(name: str, error: TlkitError) -> None:
    click.echo(f"passed over {name}: {error.what}", err=True)


def _tune(bundle: Bundle, precision: str, progress: Progress) -> Tuned:
    """What was found best for the ONNX graphs of a precision, which keep it."""
    from tlkit.benchmarking.tuning import tune

    return tune(bundle, precision, progress=progress)


def _lines(result: Benchmark) -> Iterator[str]:
    width = max(len(speed.name) for speed in result.speeds)
    gpu = any(speed.gpu is not None for speed in result.speeds)
    columns = f"   p50 ms   p90 ms   p99 ms   CPU ms{'   GPU ms' if gpu else ''}"
    yield f"{'':<{width}}  batch{columns}  images/s (least to greatest)  memory MiB"
    for speed in result.speeds:
        latency = "".join(f"{speed.latency[name]:>9.2f}" for name in ("p50", "p90", "p99")) + f"{speed.cpu:>9.2f}"
        if gpu:
            latency += f"{'-':>9}" if speed.gpu is None else f"{speed.gpu:>9.2f}"
        rate = f"{speed.rate:.1f} ({min(speed.rates):.1f} to {max(speed.rates):.1f})"
        memory = "-" if speed.memory is None else f"{speed.memory:.0f}"
        yield f"{speed.name:<{width}}  {speed.batch_size:>5}{latency}  {rate:<28}  {memory:>10}"
    for stage in result.stages:
        rate = f"{stage.rate:.1f} ({min(stage.rates):.1f} to {max(stage.rates):.1f})"
        yield f"{stage.name}, one thread, {stage.pictures} pictures: p50 {stage.latency['p50']:.2f} ms, {rate} images/s"
