"""`tlkit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, shared
from tlkit.cli.output import note, progress_bars, show, wrote
from tlkit.errors import GateError
from tlkit.util.text import quoted


@click.command()
@click.argument("path", type=FilePath, metavar="BUNDLE|GRAPH")
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Target to verify; repeatable; default: all.")
@click.option("--precision", "precisions", multiple=True, help="Precision to verify; repeatable; default: all.")
@click.option("--data", type=FilePath, help="Also compare with the trained modules on this labelled folder.")
@shared("split")
@click.option("--against", type=FilePath, metavar="BUNDLE", help="The bundle that GRAPH is said to come from.")
@shared("device", "trust", "json")
def command(path: Path, against: Path | None, data: Path | None, as_json: bool, **options: Any) -> None:
    """Replay the golden images of BUNDLE, from their bytes to probabilities, on every export.

    The exit code is the verdict: 0 if labels, pixels, features and logits are those of the training, 6 if not. Exports
    that were built for another machine are skipped. With --against, one GRAPH is verified, wherever it lies now.

    With --data every image of a folder goes through the trained modules in PyTorch and through every export: lowest
    cosine, largest errors, label agreement, flipped labels and accuracy drop.

    \b
    Examples:
      tlkit verify run/
      tlkit verify run/ --target onnx --precision int8 --json
      tlkit verify deployed/model.onnx --against run/
      tlkit verify run/ --data photos/ --split val
    """
    if options["split"] is not None and data is None:
        raise click.UsageError("--split is of --data")
    if against is not None and data is not None:
        raise click.UsageError("--data is for a bundle; to measure one graph on a folder, use: tlkit eval")
    if against is None and path.is_file():
        raise click.UsageError(f"name with --against the bundle that {path} comes from")
    from tlkit import api

    with progress_bars() as progress:
        result = api.verify(path, against=against, data=data, progress=progress, **options)
    note("rejected", result.rejected)
    facts = result.to_json()
    show(facts if against is None else facts[str(path)], result, as_json)
    again = f"run: tlkit export {quoted(path if against is None else against)}"
    if against is not None:
        if not result.passed:
            raise GateError(f"it does not give what was trained in {against}", file=path, do=f"{again} --onnx")
        wrote(None, then=f"tlkit predict {quoted(path)} IMAGE...")
        return
    if not result.passed:
        target, precision = result.failed[0].split("/")
        more = "" if precision == "fp32" else f" --precision {precision}"
        what = f"{', '.join(result.failed)} does not give what was trained"
        raise GateError(what, file=path, do=f"{again} --{target}{more}")
    wrote(None, then=f"tlkit predict {quoted(path)} {quoted(path / 'golden')}")
