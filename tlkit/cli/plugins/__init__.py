"""`tlkit plugins`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from tlkit.cli import Verbs
from tlkit.cli.common import host, json_option, show, wrote
from tlkit.plugin.contract import Backbone, Head, Strategy, Target
from tlkit.plugin.discovery import provenance

if TYPE_CHECKING:
    from tlkit.plugin.registry import Plugin, RegisteredComponent


COMMANDS = {
    "check": "Check that a plugin's components keep the contract.",
    "new": "Begin a plugin: a package that passes its checks as it stands.",
}
KINDS = tuple(contract.kind for contract in (Backbone, Head, Strategy, Target))
ALLOWED = "everything: it is code that runs with your rights"
SHOWN = 30  # components of one kind and plugin; a library of networks may have a thousand


@click.command(
    cls=Verbs,
    package=__name__,
    verbs=COMMANDS,
    invoke_without_command=True,
    short_help="List the plugins and their components; check one, or start a new one.",
)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the plugins, their origin, their components, and the options of each component.

    A plugin is code that runs with your rights; install only those you trust. One that is broken is listed with the
    reason and is not in the way of the rest. TLKIT_DISABLE_PLUGINS=name,name (or all) prevents their import.

    \b
    Examples:
      tlkit plugins
      tlkit plugins --json
      tlkit plugins check efficientnet-lite0
      tlkit plugins new tlkit-mynet --kind backbone
      TLKIT_DISABLE_PLUGINS=tlkit-mynet tlkit plugins
    """
    if context.invoked_subcommand is not None:
        return
    plugins = host().plugins
    lines = [line for plugin in plugins for line in _plugin_lines(plugin)]
    show({"plugins": [_plugin(plugin) for plugin in plugins]}, lines or ["no plugins"], as_json)
    wrote(None, then="tlkit train photos/ -o run/")


def _plugin(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.module,
        "from": provenance(plugin.distribution),
        "allowed": ALLOWED,
        "state": plugin.state,
        "reason": plugin.reason,
        "components": [_component(registered) for registered in plugin.components],
    }


def _component(registered: RegisteredComponent) -> dict[str, Any]:
    from tlkit.plugin.options import describe, to_json

    facts: dict[str, Any] = {
        "kind": registered.kind,
        "name": registered.name,
        "state": registered.state,
        "reason": registered.reason,
        "options": [],
    }
    if registered.reason is None:
        values = to_json(registered.component)
        facts["options"] = [
            {
                "name": option.name,
                "type": option.type,
                "default": values[option.name],
                "choices": list(option.choices) or None,
                "help": option.help,
            }
            for option in describe(registered.component)
        ]
    return facts


def _plugin_lines(plugin: Plugin) -> Iterator[str]:
    reason = f": {plugin.reason}" if plugin.reason else ""
    yield f"{plugin.name} ({plugin.distribution} {plugin.version}) {plugin.state}{reason}"
    yield f"  from {provenance(plugin.distribution)}; allowed to do {ALLOWED}"
    shown: Counter[str] = Counter()
    for registered in plugin.components:
        shown[registered.kind] += 1
        if shown[registered.kind] <= SHOWN:
            yield from _component_lines(registered)
    for kind, count in shown.items():
        if count > SHOWN:
            yield f"  {kind:<9} ... and {count - SHOWN} more, see: tlkit plugins --json"


def _component_lines(registered: RegisteredComponent) -> Iterator[str]:
    facts = _component(registered)
    refused = f"  refused: {registered.reason}" if registered.reason else ""
    yield f"  {registered.kind:<9} {registered.name}{refused}"
    for option in facts["options"]:
        default = "none" if option["default"] is None else option["default"]
        choices = f", one of {', '.join(map(str, option['choices']))}" if option["choices"] else ""
        yield (f"    {option['name']}={default}  {option['help']} ({option['type']}{choices})")
