"""`tlkit inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from tlkit import defaults
from tlkit.cli.options import FilePath, shared
from tlkit.cli.output import show, wrote
from tlkit.util.text import quoted


@click.command()
@click.argument("path", type=FilePath)
@shared("json")
def command(path: Path, as_json: bool) -> None:
    """Show the facts about PATH: a bundle, checked as a whole, or an exported graph.

    Of a bundle: its data, network, head, training with the validation metrics, and exports.

    \b
    Examples:
      tlkit inspect run/
      tlkit inspect run/onnx/fp32/model.onnx --json
    """
    from tlkit.insight import inspect

    found = inspect(path)
    show(found.to_json(), found, as_json)
    then = f"tlkit predict {quoted(path)} IMAGE..."
    if found.is_bundle and not found.exports:
        then = f"tlkit export {quoted(path)} --{defaults.DEFAULT_TARGET}"
    elif found.is_bundle and found.facts["golden"]:
        then = f"tlkit verify {quoted(path)}"
    wrote(None, then=then)
