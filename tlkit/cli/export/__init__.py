"""`tlkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.export.targets import ProfileType, TargetFlags, check_combination
from tlkit.cli.options import FilePath, Number, shared
from tlkit.cli.output import done, note, progress_bars
from tlkit.util.text import quoted


@click.command(cls=TargetFlags)
@click.argument("bundles", type=FilePath, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--triton", type=FilePath, metavar="DIRECTORY", help="Write a Triton model repository of ONNX graphs.")
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Any installed target; repeatable.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Precision of the graphs; int8 is calibrated on images of the training split.",
)
@click.option(
    "--max-drop",
    type=Number(0),
    metavar="POINTS",
    help="Maximum accuracy drop in percentage points; falls back to the next higher precision if exceeded.",
)
@click.option("--no-fallback", is_flag=True, help="Fail where the precision asked for exceeds --max-drop.")
@click.option("--refit-head", is_flag=True, help="Refit the head on int8 features; keep it if it is better.")
@click.option("--shared-trunk", is_flag=True, help="Write one graph with the heads of several bundles on one trunk.")
@click.option("-o", "--out", type=FilePath, help="Folder for --shared-trunk; an earlier one is replaced.")
@click.option("--profile", type=ProfileType(), metavar="MIN,OPT,MAX", help="Batch sizes that engines are built for.")
@click.option("--gpu", metavar="SM,...", help="Compute capabilities to build for, as in sm86,sm89: target.gpu.")
@shared("set")
@click.option("--data", type=FilePath, help="Images to check on, labelled as those in training; default: the latter.")
@shared("json")
def command(bundles: tuple[Path, ...], triton: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Export BUNDLE as graphs for deployment, each checked on real images.

    Every graph must give what the trained modules give, at several batch sizes; otherwise nothing is written and the
    exit code is 6. Every other target starts from the ONNX graphs, which are written first if they are not there.

    With --max-drop, candidates are tried from --precision upwards: int8, int8 with the most sensitive layers in float,
    fp16, fp32. The first one within that accuracy drop on the validation split is written.
    With --refit-head, the head is refitted on the features of every int8 trunk, and kept in the export if it is better.

    \b
    Examples:
      tlkit export run/ --onnx
      tlkit export run/ --onnx --precision int8 --max-drop 0.5
      tlkit export pets/ birds/ --onnx --shared-trunk -o both/
      tlkit export run/ --tensorrt-rtx --gpu sm86,sm89,sm120 --profile 1,8,32
      tlkit export pets/ birds/ --triton repository/ --precision int8
    """
    check_combination(bundles, triton, out, options)
    from tlkit import api

    gpu, common = options.pop("gpu"), {"data": options.pop("data")}
    with progress_bars() as common["progress"]:
        if triton is not None:
            result: Any = api.export_triton(bundles, triton, precision=options["precision"], **common)
            then = f"tritonserver --model-repository {quoted(triton.absolute())}"
        elif out is not None:
            result = api.export_shared_trunk(bundles, out, **common)
            then = f"tlkit predict {quoted(out)} --head {next(iter(result.verdicts))} IMAGE..."
        else:
            chosen = options.pop("options") | ({} if gpu is None else {"target.gpu": gpu})
            common |= {"options": chosen, "fallback": not options.pop("no_fallback")}
            del options["shared_trunk"]
            result = api.export(bundles[0], *options.pop("targets"), **common, **options)
            then = f"tlkit predict {quoted(result.folders[-1])} IMAGE..."
            then = f"tlkit verify {quoted(bundles[0])}" if result.golden else then
    note("wrote", map(str, result.folders[:-1]))
    done(result, as_json, then=then, out=result.folders[-1])
