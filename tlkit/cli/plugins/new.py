"""`tlkit plugins new`."""

from __future__ import annotations

from pathlib import Path

import click

from tlkit.cli.common import FilePath, host, json_option, show, wrote
from tlkit.cli.plugins import COMMANDS, KINDS
from tlkit.errors import UsageError
from tlkit.util.text import quoted


@click.command(short_help=COMMANDS["new"])
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="Kind of the new plugin's component.")
@click.option("-o", "--out", type=FilePath, help="The folder to write; NAME unless given. Must not exist yet.")
@json_option
def command(name: str, kind: str, out: Path | None, as_json: bool) -> None:
    """Begin a plugin: a package with code, a test and a README that passes its checks as it stands.

    NAME is that of the distribution, by custom with tlkit- before the name of its component.

    \b
    Examples:
      tlkit plugins new tlkit-mynet --kind backbone
      tlkit plugins new tlkit-myhead --kind head -o somewhere/else/
    """
    from tlkit.conformance import scaffold

    found = scaffold.names(name, kind)
    if found.component in host().names(kind):
        raise UsageError(f"there is a {kind} {found.component!r} already", do="choose another name; see: tlkit plugins")
    place = out or Path(name)
    code = scaffold.write(found, place)
    facts = {"folder": str(place), "code": str(code), "kind": kind, "name": found.component}
    show(facts, [f"{found.kind} {found.component}: its code is {code}"], as_json)
    wrote(place, then=f"pip install -e {quoted(place)} && tlkit plugins check {found.component}")
