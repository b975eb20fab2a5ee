"""`tlkit plugins show`."""

from __future__ import annotations

import click

from tlkit.cli.options import complete_names, shared
from tlkit.cli.output import show, wrote
from tlkit.cli.plugins import KINDS


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--kind", type=click.Choice(KINDS), help="Only components of this kind.")
@shared("json")
def command(name: str, kind: str | None, as_json: bool) -> None:
    """Show the options of a component (type, default, choices, help), and for a backbone weights and preprocessing.

    NAME is that of a component, a pattern for several, or that of a plugin for all its components.

    \b
    Examples:
      tlkit plugins show NAME
      tlkit plugins show NAME --kind head --json
    """
    from tlkit.conformance.report import select
    from tlkit.resolve import load_plugins

    components, _ = select(load_plugins(), name, kind)
    text = "\n\n".join(map(str, components))
    show({"components": [each.to_json(details=True) for each in components]}, text, as_json)
    wrote(None, then=f"tlkit plugins check {name}")
