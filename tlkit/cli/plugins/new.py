"""`tlkit plugins new`."""

from __future__ import annotations

from pathlib import Path

import click

from tlkit.cli.options import FilePath, shared
from tlkit.cli.output import show, wrote
from tlkit.cli.plugins import KINDS
from tlkit.errors import UsageError
from tlkit.util.text import quoted


@click.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="Kind of the new plugin's component.")
@click.option("-o", "--out", type=FilePath, help="Folder to write, NAME by default; must not exist yet.")
@shared("json")
def command(name: str, kind: str, out: Path | None, as_json: bool) -> None:
    """Start a plugin: a package with code, a test and a README that passes its checks as it stands.

    NAME is that of the distribution, by convention tlkit- and the name of its component.

    \b
    Examples:
      tlkit plugins new tlkit-mynet --kind backbone
      tlkit plugins new tlkit-myhead --kind head -o somewhere/else/
    """
    from tlkit.conformance import scaffold
    from tlkit.resolve import load_plugins

    found = scaffold.names(name, kind)
    if found.component in load_plugins().names(kind):
        raise UsageError(f"there is a {kind} {found.component!r} already", do="choose another name; see: tlkit plugins")
    place = out or Path(name)
    code = scaffold.write(found, place)
    facts = {"folder": str(place), "code": str(code), "kind": kind, "name": found.component}
    show(facts, f"{found.kind} {found.component}: its code is {code}", as_json)
    wrote(place, then=f"pip install -e {quoted(place)} && tlkit plugins check {found.component}")
