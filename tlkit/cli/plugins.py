"""`tlkit plugins`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tlkit.cli.common import host, json_option, show, wrote

if TYPE_CHECKING:
    from tlkit.plugin.host import Offered, Plugin


@click.command(short_help="List the plugins and what they offer.")
@json_option
def command(as_json: bool) -> None:
    """List the plugins, what they offer, and the options of each offer.

    A plugin is code that runs with your rights; install only those you trust. One that is broken is listed with the
    reason and is not in the way of the rest. TLKIT_DISABLE_PLUGINS=name,name (or all) prevents their import.

    \b
    Examples:
      tlkit plugins
      tlkit plugins --json
      TLKIT_DISABLE_PLUGINS=tlkit-mynet tlkit plugins
    """
    plugins = host().plugins
    lines = []
    for plugin in plugins:
        reason = f": {plugin.reason}" if plugin.reason else ""
        lines.append(f"{plugin.name} ({plugin.distribution} {plugin.version}) {plugin.state}{reason}")
        for offered in plugin.offers:
            lines += _lines(offered)
    show({"plugins": [_plugin(plugin) for plugin in plugins]}, lines or ["no plugins"], as_json)
    wrote(None, then="tlkit train photos/ -o run/")


def _plugin(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.module,
        "state": plugin.state,
        "reason": plugin.reason,
        "offers": [_offer(offered) for offered in plugin.offers],
    }


def _offer(offered: Offered) -> dict[str, Any]:
    from tlkit.plugin.settings import describe, to_json

    facts: dict[str, Any] = {
        "kind": offered.kind,
        "name": offered.name,
        "state": offered.state,
        "reason": offered.reason,
        "options": [],
    }
    if offered.reason is None:
        values = to_json(offered.offer)
        facts["options"] = [
            {
                "name": option.name,
                "type": option.type,
                "default": values[option.name],
                "choices": list(option.choices) or None,
                "help": option.help,
            }
            for option in describe(offered.offer)
        ]
    return facts


def _lines(offered: Offered) -> list[str]:
    facts = _offer(offered)
    refused = f"  refused: {offered.reason}" if offered.reason else ""
    lines = [f"  {offered.kind:<9} {offered.name}{refused}"]
    for option in facts["options"]:
        default = "none" if option["default"] is None else option["default"]
        choices = f", one of {', '.join(map(str, option['choices']))}" if option["choices"] else ""
        lines.append(f"    {option['name']}={default}  {option['help']} ({option['type']}{choices})")
    return lines
