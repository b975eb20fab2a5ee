"""`tlkit verify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlkit.cli.common import FilePath, host, json_option, show, wrote
from tlkit.errors import ArtefactError, GateError, ResourceError
from tlkit.files import quoted

if TYPE_CHECKING:
    from tlkit.plugin.contract import Session


@click.command(short_help="Replay a bundle's golden images on what was exported from it.")
@click.argument("bundle", type=FilePath)
@click.option("--target", help="Only what was exported for this target; default: all that can be run here.")
@click.option("--precision", help="Only what was exported in this precision; default: all.")
@json_option
def command(bundle: Path, target: str | None, precision: str | None, as_json: bool) -> None:
    """Replay the golden images of BUNDLE, from their bytes to logits, on every graph exported from it.

    The exit code is the verdict: 0 if pixels, features and logits are those of the training, 6 if not. What was built
    for another machine is named and passed over.

    \b
    Examples:
      tlkit verify run/
      tlkit verify run/ --target onnx --precision int8 --json
    """
    from tlkit.deploy import built
    from tlkit.deploy.verify import replay
    from tlkit.model.bundle import GOLDEN, open_bundle

    opened = open_bundle(bundle)
    again = built.command(bundle, target or built.TARGET, precision or built.PRECISION)
    found = [place for place in built.found(bundle) if target in (None, place[0]) and precision in (None, place[1])]
    if not found:
        asked = "".join(f" {each}" for each in (target, precision) if each)
        raise ArtefactError(f"nothing was exported from it{' for' if asked else ''}{asked} yet", file=bundle, do=again)
    replays, elsewhere = {}, {}
    for name, chosen in found:
        try:
            replays[f"{name}/{chosen}"] = replay(opened, name, chosen, _opener(name))
        except ResourceError as error:
            if target is not None or len(found) == 1:
                raise
            elsewhere[f"{name}/{chosen}"] = error.what

    lines = [f"{place}: not verified here: {why}" for place, why in elsewhere.items()]
    for place, result in replays.items():
        wrong = f"pixels differ for {', '.join(result.pixels)}" if result.pixels else "pixels identical"
        lines.append(f"{place}: {result.images} golden images, {wrong}")
        for name, verdict in result.verdicts.items():
            lines.append(f"  {name}: {'same' if verdict.passed else 'DIFFERS'} ({verdict.summary()})")
    facts = {place: result.to_json() for place, result in replays.items()}
    show({**facts, **{place: {"passed": None, "why": why} for place, why in elsewhere.items()}}, lines, as_json)
    failed = [place for place, result in replays.items() if not result.passed]
    if failed:
        raise GateError(f"{', '.join(failed)} does not give what was trained", file=bundle, do=again)
    model = built.graph_file(bundle, "model")
    wrote(None, then=f"tlkit predict {quoted(model)} {quoted(bundle / GOLDEN)}")


def _opener(target: str) -> Callable[[Path], Session]:
    """What opens a file of a target; ONNX needs no plugin."""
    from tlkit.deploy.session import OnnxSession

    if target == "onnx":
        return OnnxSession
    opener: Callable[[Path], Session] = host().get("target", target).open
    return opener
