"""`tlkit export`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlkit.cli.common import FilePath, components, host, json_option, options_of, progress_bars, show, wrote
from tlkit.plugin.contract import OptimizationProfile, option_fields
from tlkit.util.text import quoted

if TYPE_CHECKING:
    from onnx import ModelProto

    from tlkit.exporting.precision_search import Again, Climbed
    from tlkit.exporting.run import Published
    from tlkit.model.bundle import Bundle
    from tlkit.verification.parity import Verdict

GPU = "gpu"  # the option of a target that `--gpu` sets
LAYERS_SHOWN = 10  # all of them are in manifest.json and in the JSON


def _profile(_context: click.Context, _parameter: click.Parameter, given: str | None) -> OptimizationProfile | None:
    """Three rising batch sizes separated by commas."""
    if given is None:
        return None
    numbers = [int(word) for word in given.split(",") if word.strip().isdecimal()]
    if len(numbers) != 3 or given.count(",") != 2 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise click.BadParameter(f"{given!r} is not three rising numbers, as in 1,8,32")
    return OptimizationProfile(*numbers)


@click.command(short_help="Turn a bundle into graphs for deployment, each checked on real images.")
@click.argument("bundles", type=FilePath, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--onnx", is_flag=True, help="Write trunk.onnx, head.onnx and model.onnx; the same as --target onnx.")
@click.option("--tensorrt", is_flag=True, help="Build TensorRT engines for this machine's GPU.")
@click.option("--tensorrt-rtx", is_flag=True, help="Build TensorRT-RTX engines; needs no GPU.")
@click.option(
    "--triton", type=FilePath, metavar="DIRECTORY", help="Write a model repository for Triton, from the ONNX graphs."
)
@click.option("--target", "named", multiple=True, metavar="NAME", help="Any installed target; repeatable.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the graphs; int8 is calibrated on images of the training split.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0),
    metavar="POINTS",
    help="Points of accuracy it may cost; what costs more gives way to the next higher precision.",
)
@click.option("--no-fallback", is_flag=True, help="Fail where the precision asked for costs more than --max-drop.")
@click.option("--refit-head", is_flag=True, help="Fit the head again on the features in int8; keep it if it is better.")
@click.option("--shared-trunk", is_flag=True, help="Write one graph with the heads of several bundles on one trunk.")
@click.option("-o", "--out", type=FilePath, help="Where to write it; one that was written before is replaced.")
@click.option("--profile", callback=_profile, metavar="MIN,OPT,MAX", help="Batch sizes that engines are built for.")
@click.option(
    "--gpu",
    metavar="SM,...",
    help="Compute capabilities that engines are built for, as in sm86,sm89 (see tensorrt-rtx).",
)
@click.option("--set", "settings", multiple=True, metavar="target.OPTION=VALUE", help="An option of the target.")
@click.option("--data", type=FilePath, help="Images to check on, labelled as those in training; default: the latter.")
@json_option
def command(
    bundles: tuple[Path, ...],
    onnx: bool,
    tensorrt: bool,
    tensorrt_rtx: bool,
    triton: Path | None,
    named: tuple[str, ...],
    precision: str,
    max_drop: float | None,
    no_fallback: bool,
    refit_head: bool,
    shared_trunk: bool,
    out: Path | None,
    profile: OptimizationProfile | None,
    gpu: str | None,
    settings: tuple[str, ...],
    data: Path | None,
    as_json: bool,
) -> None:
    """Turn BUNDLE into graphs for deployment, each checked on real images.

    Every graph must give what the trained modules give, at several batch sizes; otherwise nothing is written and the
    exit code is 6. Every other target starts from the ONNX graphs, which are written first if they are not there.

    With --max-drop the precisions are tried from the one asked for upwards: int8, int8 with the most sensitive layers
    left in float, fp16, fp32. The first that loses no more points of accuracy on the validation split is written.

    With --refit-head the head is fitted again on the features that every int8 trunk gives for the training split, and
    kept there if it does better on the validation split. The bundle stays as it is; its int8 graphs then have that
    head, and are verified with it.

    \b
    Examples:
      tlkit export run/ --onnx
      tlkit export run/ --onnx --data more-photos/ --json
      tlkit export run/ --onnx --precision int8 --max-drop 0.5
      tlkit export pets/ birds/ --onnx --shared-trunk -o both/
      tlkit export run/ --tensorrt-rtx --gpu sm86,sm89,sm120 --profile 1,8,32
      tlkit export pets/ birds/ --triton repository/ --precision int8
    """
    flags = {"onnx": onnx, "tensorrt": tensorrt, "tensorrt-rtx": tensorrt_rtx}
    names = list(dict.fromkeys([*(name for name, given in flags.items() if given), *named]))
    _check_options(bundles, names, precision, max_drop, no_fallback, refit_head, shared_trunk, out, triton, gpu)
    if gpu is not None:
        settings = (*settings, _for_gpus(names, gpu))
    if triton is not None:
        _serve(bundles, triton, precision, data, as_json)
    elif out is not None:
        _share(bundles, out, data, as_json)
    else:
        climb = partial(_precise, max_drop=max_drop, fallback=not no_fallback, refit_head=refit_head)
        _export(bundles[0], names, settings, precision, climb, profile, data, as_json)


def _check_options(
    bundles: Sequence[Path],
    names: Sequence[str],
    precision: str,
    max_drop: float | None,
    no_fallback: bool,
    refit_head: bool,
    shared_trunk: bool,
    out: Path | None,
    triton: Path | None,
    gpu: str | None,
) -> None:
    """Refuse what does not fit together."""
    problems = {
        "name a target: --onnx, --tensorrt, --tensorrt-rtx, --triton DIRECTORY or --target NAME": not names
        and not triton,
        "--triton goes with --precision and --data alone": bool(
            triton and (names or shared_trunk or out or max_drop or refit_head)
        ),
        "--gpu goes with a target, such as --tensorrt-rtx": bool(gpu and not names),
        "--shared-trunk is for --onnx in fp32": shared_trunk and (names != ["onnx"] or precision != "fp32"),
        "--shared-trunk needs -o, where to write": shared_trunk and out is None,
        "-o is for --shared-trunk: what else is exported lies in the bundle": out is not None and not shared_trunk,
        "several bundles need --shared-trunk -o DIRECTORY": len(bundles) > 1 and not shared_trunk and not triton,
        "--max-drop is for --precision int8 or fp16: fp32 costs nothing": max_drop is not None and precision == "fp32",
        "--no-fallback needs --max-drop": no_fallback and max_drop is None,
        "--refit-head is for --precision int8": refit_head and precision != "int8",
    }
    for problem, is_so in problems.items():
        if is_so:
            raise click.UsageError(problem)


def _for_gpus(names: Sequence[str], gpu: str) -> str:
    """The setting that `--gpu` stands for; refused where a target has no such option."""
    for name in names:
        if GPU not in {field.name for field in option_fields(host().get("target", name))}:
            raise click.UsageError(f"--gpu is for targets that build for chosen GPUs, as tensorrt-rtx does, not {name}")
    return f"target.{GPU}={gpu}"


def _export(
    bundle: Path,
    names: Sequence[str],
    settings: Sequence[str],
    precision: str,
    climb: Callable[[Bundle, str, Path | None], tuple[Published, Climbed]],
    profile: OptimizationProfile | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """The by-products of one bundle."""
    from tlkit.plugin.options import configure_all

    options = options_of(settings)
    targets = [configure_all({"target": host().get("target", name)}, options)["target"] for name in names]

    from tlkit.exporting.run import graphs_for, publish_target
    from tlkit.model import exports
    from tlkit.model.bundle import open_bundle

    wanted = {target.name: graphs_for(target, precision) for target in targets}
    opened = open_bundle(bundle)
    published: list[Published] = []
    climbed: dict[str, Climbed] = {}  # by the flavour of the graphs
    if ("onnx" in names and precision == exports.PRECISION) or not exports.current(opened):
        published.append(_onnx(opened, data))
    taken = {exports.PRECISION: exports.PRECISION}  # for each that was asked for, where the ladder ended
    for flavour in dict.fromkeys(wanted.values()):
        if flavour != exports.PRECISION:
            one, climbed[flavour] = climb(opened, flavour, data)
            published.append(one)
            taken[flavour] = exports.plain(one.place.name)
    with progress_bars() as bars:
        published += [
            publish_target(
                opened, target, precision=taken[wanted[target.name]], profile=profile, data=data, progress=bars
            )
            for target in targets
            if target.name != exports.TARGET
        ]

    golden = bool(opened.record.golden)
    then = f"tlkit verify {quoted(bundle)}" if golden else f"tlkit predict {quoted(published[-1].place)} IMAGE..."
    facts: dict[str, Any] = {"exported": [_facts(each) for each in published], "next": then}
    lines = [line for each in published for line in _lines(each)]
    if climbed:
        facts["ladders"] = {flavour: ladder.to_json() for flavour, ladder in climbed.items()}
        lines += [line for ladder in climbed.values() for line in _ladder(ladder)]
    show(facts, lines, as_json)
    for each in published[:-1]:
        click.echo(f"wrote {each.place}", err=True)
    wrote(published[-1].place, then=then)


def _share(bundles: Sequence[Path], out: Path, data: Path | None, as_json: bool) -> None:
    """One graph of several bundles."""
    from tlkit.exporting.shared_trunk import share
    from tlkit.model.exports import PRECISION

    made = share(_exported(bundles, PRECISION, data), out)
    first = next(iter(made.verdicts))
    then = f"tlkit predict {quoted(out)} --head {first} IMAGE..."
    parity, lines = _parity(made.verdicts)
    show(
        {"place": str(out), "heads": parity, "next": then},
        [f"{out}: each head held against its own model", *lines],
        as_json,
    )
    wrote(out, then=then)


def _serve(bundles: Sequence[Path], repository: Path, precision: str, data: Path | None, as_json: bool) -> None:
    """A model repository of several bundles."""
    from tlkit.exporting.triton import publish_triton

    made = publish_triton(_exported(bundles, precision, data), repository, precision=precision)
    then = f"tritonserver --model-repository {quoted(repository.absolute())}"
    parity, lines = _parity(made.verdicts)
    show(
        {"place": str(repository), "models": list(made.models), "ensembles": parity, "next": then},
        [f"{repository}: {', '.join(made.models)}; each ensemble held against its own model", *lines],
        as_json,
    )
    wrote(repository, then=then)


def _exported(bundles: Sequence[Path], precision: str, data: Path | None) -> list[Bundle]:
    """The bundles, each of which is exported in fp32 and in this precision where it is not yet."""
    from tlkit.model import exports
    from tlkit.model.bundle import open_bundle

    opened = [open_bundle(bundle) for bundle in bundles]
    for each in opened:
        if not exports.current(each):
            _onnx(each, data)
        if not exports.current(each, precision):
            _precise(each, precision, data, max_drop=None, fallback=False, refit_head=False)
    return opened


def _parity(verdicts: Mapping[str, Verdict]) -> tuple[dict[str, Any], list[str]]:
    """The verdict on each bundle's head, as JSON and as lines."""
    return (
        {name: verdict.to_json() for name, verdict in verdicts.items()},
        [f"  {name}: {verdict.summary()}" for name, verdict in verdicts.items()],
    )


def _onnx(bundle: Bundle, data: Path | None) -> Published:
    """The ONNX graphs, traced from the modules of the plugins that the bundle names."""
    from tlkit.exporting.run import publish_onnx

    return publish_onnx(bundle, *components(bundle), data=data)


def _precise(
    bundle: Bundle,
    precision: str,
    data: Path | None,
    *,
    max_drop: float | None,
    fallback: bool,
    refit_head: bool,
) -> tuple[Published, Climbed]:
    """The ONNX graphs in another precision than fp32."""
    from tlkit.exporting.head_refit import fit
    from tlkit.exporting.precision import publish_precision
    from tlkit.exporting.run import half_trunk

    def half() -> ModelProto:
        return half_trunk(bundle, *components(bundle))

    again = partial(fit, bundle, components(bundle)[1]) if refit_head else None
    with progress_bars() as bars:
        return publish_precision(
            bundle, precision, half, max_drop=max_drop, fallback=fallback, data=data, progress=bars, fit=again
        )


def _ladder(climbed: Climbed) -> list[str]:
    """What was tried, the last of which was taken, and the layers that cost most."""
    rungs = climbed.rungs
    if not rungs:
        return ["accuracy was not measured: the images it was trained on are not on this machine any more"]
    width = max(len(rung.name) for rung in rungs)
    lines = [f"measured on {rungs[0].images} validation images, against fp32:"]
    lines += [
        f"  {rung.name:<{width}}  accuracy {rung.accuracy:.1%}, {rung.drop:.2f} points lost, "
        f"{rung.agreement:.1%} called the same (95 %: {rung.interval[0]:.1%} to {rung.interval[1]:.1%})"
        + ("" if rung.proven else ", but its features are not those that were trained")
        for rung in rungs
    ]
    lines += [f"  {rung.name}, head fitted again: {_again(rung.head)}" for rung in rungs if rung.head is not None]
    if climbed.sensitivity:
        lines.append("noise of the features where one layer alone is int8, the most sensitive first:")
        lines += [f"  {layer.noise:7.2%}  {layer.name}" for layer in climbed.sensitivity[:LAYERS_SHOWN]]
    return lines


def _again(head: Again) -> str:
    """How a head that was fitted again did beside the bundle's own."""
    return (
        f"accuracy {head.accuracy:.1%} to {head.own_accuracy:.1%}, log loss {head.log_loss:.4f} to "
        f"{head.own_log_loss:.4f}, {'kept' if head.kept else 'not kept'}"
    )


def _facts(published: Published) -> dict[str, Any]:
    return {
        "place": str(published.place),
        "images": published.images,
        "drawn_from": published.drawn_from,
        "parity": {name: verdict.to_json() for name, verdict in published.verdicts.items()},
        "unproven": published.unproven,
    }


def _lines(published: Published) -> list[str]:
    if published.unproven is not None:
        return [f"{published.place}: built, but not proven here: {published.unproven}"]
    if not published.verdicts:
        return [f"{published.place}: nothing below it stays within --max-drop"]
    return [
        f"{published.place}: checked on {published.images} images from {published.drawn_from}",
        *(f"  {name}: {verdict.summary()}" for name, verdict in published.verdicts.items()),
    ]
