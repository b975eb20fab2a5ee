"""`tlkit verify`."""

from __future__ import annotations

from pathlib import Path

import click

from tlkit.cli.common import FilePath, json_option, shell_path, show
from tlkit.errors import ArtefactError, GateError


@click.command(short_help="Replay a bundle's golden images on what was exported from it.")
@click.argument("bundle", type=FilePath)
@json_option
def command(bundle: Path, as_json: bool) -> None:
    """Replay the golden images of BUNDLE, from their bytes to logits, on every graph exported from it.

    The exit code is the verdict: 0 if pixels, features and logits are those of the training, 6 if not.

    \b
    Examples:
      tlkit verify run/
      tlkit verify run/ --json
    """
    from tlkit.deploy import built
    from tlkit.deploy.verify import replay
    from tlkit.model.bundle import open_bundle

    opened = open_bundle(bundle)
    found = built.found(bundle)
    if not found:
        raise ArtefactError("nothing was exported from it yet", file=bundle, do=f"run: tlkit export {bundle} --onnx")
    replays = {f"{target}/{precision}": replay(opened, target, precision) for target, precision in found}

    lines = []
    for place, result in replays.items():
        wrong = f"pixels differ for {', '.join(result.pixels)}" if result.pixels else "pixels identical"
        lines.append(f"{place}: {result.images} golden images, {wrong}")
        for name, verdict in result.verdicts.items():
            lines.append(f"  {name}: {'same' if verdict.passed else 'DIFFERS'} ({verdict.summary()})")
    show({place: result.to_json() for place, result in replays.items()}, lines, as_json)
    failed = [place for place, result in replays.items() if not result.passed]
    if failed:
        raise GateError(
            f"{', '.join(failed)} does not give what was trained", file=bundle, do=f"run: tlkit export {bundle} --onnx"
        )
    model = bundle / found[0][0] / found[0][1] / "model.onnx"
    click.echo(f"wrote nothing\nnext: tlkit predict {shell_path(model)} IMAGE...", err=True)
