"""`tlkit plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from tlkit.cli import Verbs, output
from tlkit.cli.options import shared
from tlkit.plugin import kinds
from tlkit.plugin.discovery import provenance
from tlkit.util.text import listed

if TYPE_CHECKING:
    from tlkit.plugin.registry import Plugin

COMMANDS = {
    "show": "Show the options of a component, its weights and its preprocessing.",
    "check": "Check that components keep the contract.",
    "new": "Start a plugin: a package that passes its checks as it stands.",
}
KINDS = tuple(kinds.KINDS)
ALLOWED = "everything: it is code that runs with your rights"
SHOWN = 12  # components of one kind and plugin; a library of networks may have a thousand


@click.command(cls=Verbs, package=__name__, verbs=COMMANDS, invoke_without_command=True)
@shared("json")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List plugins, where they came from, and their components.

    A plugin is code that runs with your rights; install only those you trust. A broken one is listed with the reason,
    and the others work. TLKIT_DISABLE_PLUGINS=name,name (or all) prevents their import.

    \b
    Examples:
      tlkit plugins
      tlkit plugins show NAME
      tlkit plugins check NAME
      tlkit plugins new tlkit-mynet --kind backbone
      TLKIT_DISABLE_PLUGINS=tlkit-mynet tlkit plugins --json
    """
    if context.invoked_subcommand is not None:
        return
    from tlkit.resolve import load_plugins

    plugins = load_plugins().plugins
    text = "\n".join(line for plugin in plugins for line in _lines(plugin)) or "no plugins"
    output.show({"plugins": [_facts(plugin) for plugin in plugins]}, text, as_json)
    output.wrote(None, then="tlkit train photos/ -o run/")


def _facts(plugin: Plugin) -> dict[str, Any]:
    return {
        **{name: getattr(plugin, name) for name in ("name", "distribution", "version", "module", "state", "reason")},
        "source": provenance(plugin.distribution),
        "allowed": ALLOWED,
        "components": [each.to_json() for each in plugin.components],
    }


def _lines(plugin: Plugin) -> Iterator[str]:
    """Return the plugin, its components by kind, and those that were refused with the reason."""
    reason = f": {plugin.reason}" if plugin.reason else ""
    source = provenance(plugin.distribution)
    yield f"{plugin.name} ({plugin.distribution} {plugin.version}, from {source}) {plugin.state}{reason}"
    for kind in dict.fromkeys(each.kind for each in plugin.components):
        names = [each.name for each in plugin.components if each.kind == kind and each.reason is None]
        if names:
            yield f"  {kind:<9} {listed(names, SHOWN)}"
    for each in plugin.components:
        if each.reason is not None:
            yield f"  {each.kind:<9} {each.name} refused: {each.reason}"
