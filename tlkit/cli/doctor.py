"""`tlkit doctor`."""

from __future__ import annotations

import click

from tlkit.cli.options import shared
from tlkit.cli.output import show, wrote
from tlkit.errors import ResourceError


@click.command()
@shared("json")
def command(as_json: bool) -> None:
    """Report what this machine can run, and problems of the installation.

    Versions, the GPU and its driver, the providers of ONNX Runtime that start (each is tried on a small graph), the
    targets, the plugins, and packages that clash. The exit code is 5 if there are problems.

    \b
    Examples:
      tlkit doctor
      tlkit doctor --json
    """
    from tlkit.api import diagnose

    found = diagnose()
    show(found.to_json(), found, as_json)
    if found.problems:
        first = found.problems[0]
        more = f" ({len(found.problems) - 1} more above)" if len(found.problems) > 1 else ""
        raise ResourceError(f"{first.what}{more}", do=first.do)
    wrote(None, then="tlkit plugins")
